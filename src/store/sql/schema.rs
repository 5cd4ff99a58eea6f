//! The tables, as diesel knows them. See `migrations/sqlite` for what they hold.

diesel::table! {
    agents (no) {
        no -> BigInt,
        name -> Text,
        transport -> Text,
        address -> Nullable<Text>,
        labels -> Text,
        facts -> Text,
        version -> Text,
        enrolled_at -> BigInt,
        last_seen -> Nullable<BigInt>,
        checked_in_at -> Nullable<BigInt>,
        disabled -> Bool,
        removed_at -> Nullable<BigInt>,
        session_epoch -> BigInt,
        secret -> Nullable<Text>,
        reported_labels -> Text,
        set_labels -> Text,
        duplicate_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    tokens (id) {
        id -> Text,
        hash -> Binary,
        role -> Text,
        name -> Text,
        agent_no -> Nullable<BigInt>,
        created_at -> BigInt,
        expires_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        enroll_nonce -> Nullable<Binary>,
    }
}

diesel::table! {
    nodes (incarnation) {
        incarnation -> Text,
        name -> Text,
        started_at -> BigInt,
        heartbeat -> BigInt,
        transports -> Text,
    }
}

diesel::table! {
    agent_sessions (agent_no) {
        agent_no -> BigInt,
        incarnation -> Text,
        epoch -> BigInt,
        connected_at -> BigInt,
    }
}

diesel::table! {
    actions (no) {
        no -> BigInt,
        id -> Text,
        idempotency_key -> Nullable<Text>,
        name -> Text,
        target -> Text,
        document -> Text,
        operations -> Text,
        digest -> Binary,
        created_at -> BigInt,
        valid_from -> BigInt,
        expires_at -> BigInt,
        spread_ms -> BigInt,
        timeout_ms -> BigInt,
        max_deliveries -> Nullable<Integer>,
        max_runs -> Integer,
        live -> Bool,
        priority -> Integer,
        resolved -> Bool,
        paused -> Bool,
        cancelled -> Bool,
        expired -> Bool,
        expected_total -> Nullable<BigInt>,
        resolved_through -> BigInt,
        dispatched_through -> BigInt,
        owner -> Nullable<Text>,
        ended_at -> Nullable<BigInt>,
        created_by -> Nullable<Text>,
        scheduled_for -> Nullable<BigInt>,
        retry_of -> Nullable<Text>,
    }
}

diesel::table! {
    action_counts (action_no, lane) {
        action_no -> BigInt,
        lane -> Text,
        total -> BigInt,
        sent -> BigInt,
        succeeded -> BigInt,
        failed -> BigInt,
        timed_out -> BigInt,
        undeliverable -> BigInt,
        expired -> BigInt,
        cancelled -> BigInt,
    }
}

diesel::table! {
    outcomes (action_no, agent_no, run) {
        action_no -> BigInt,
        agent_no -> BigInt,
        run -> Integer,
        status -> SmallInt,
        is_final -> Bool,
        attempts -> Integer,
        sent_at -> Nullable<BigInt>,
        started_at -> Nullable<BigInt>,
        finished_at -> BigInt,
        results -> Nullable<Text>,
        error -> Nullable<Text>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(agents, tokens, agent_sessions, actions, action_counts);
