//! The id of a run at an agent, the same for every delivery attempt.

use uuid::Uuid;

/// The namespace of these ids. Chosen at random once. A change would make receivers take a repeat
/// for something new.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_3b0a_52c4_4e0b_9c7e_8a1f_d3b5_7264);

/// The UUIDv5 of (action, agent, run). An agent's name contains no `/`.
pub(super) fn run_id(action: Uuid, agent: &str, run: i32) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{action}/{agent}/{run}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_at_each_agent_has_an_id_of_its_own_that_never_changes() {
        let action = Uuid::from_u128(7);
        let id = run_id(action, "a", 1);
        assert_eq!(id, run_id(action, "a", 1));
        assert_eq!(id.to_string(), "f188fc03-fdb4-5cef-acd5-42defdd8b1fa");
        for other in [run_id(action, "a", 2), run_id(action, "b", 1), run_id(Uuid::from_u128(8), "a", 1)] {
            assert_ne!(id, other);
        }
    }
}
