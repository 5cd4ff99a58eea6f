//! Many agents, many actions.
