//! The whole of it, as a stranger runs it: the built binary in a process of its own, real agents, real sockets, real files.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "these are tests")]

mod abuse;
mod agent_clock;
mod agent_flow;
mod agent_input;
mod agent_programs;
#[cfg(feature = "amqp")]
mod amqp;
mod backup;
mod basics;
mod chaos;
mod check_in;
mod cli;
mod cli_operator;
mod clients;
mod clocks;
#[path = "../cluster/mod.rs"]
mod cluster;
mod documents;
mod enrolling;
#[cfg(feature = "failpoints")]
mod faults;
#[cfg(feature = "webhook")]
mod hooks;
mod http_api;
mod https;
mod identity;
mod joining;
mod kill;
mod metadata;
#[cfg(feature = "nats")]
mod nats;
mod nodes;
mod open_files;
mod postgres_access;
mod prometheus;
mod reconnect;
mod recording;
mod refusals;
mod retention;
mod scale;
mod schedules;
#[cfg(feature = "smtp")]
mod smtp;
mod soak;
mod spool_input;
mod sqlite_faults;
mod startup;
mod store_faults;
mod support;
mod terminal;
mod tour;
#[cfg(feature = "webhook")]
mod webhook;

/// Runs each case on both stores.
macro_rules! on_both {
    ($($topic:ident { $($case:ident)* })*) => {
        on_both! { on_sqlite, Sqlite; $($topic { $($case)* })* }
        on_both! { on_postgres, Postgres; $($topic { $($case)* })* }
    };
    ($name:ident, $store:ident; $($topic:ident { $($case:ident)* })*) => {
        mod $name {
            $(mod $topic {
                $(#[actix_rt::test]
                async fn $case() {
                    crate::$topic::$case(crate::support::On::$store).await;
                })*
            })*
        }
    };
}

on_both! {
    abuse {
        bodies_that_are_none_get_a_problem_that_names_the_place
        who_may_not_do_something_is_told_so
        a_token_that_calls_too_often_is_slowed_down_and_nobody_else
        a_token_has_so_many_streams_open_and_no_more
    }
    joining {
        agents_join_a_live_action_until_it_expires
        agents_that_join_before_valid_from_get_nothing_before_it
        an_added_agent_has_its_secrets_once_and_its_address
        the_audit_log_says_who_did_what
    }
    basics {
        a_file_in_the_spool_becomes_results_of_real_agents
        a_result_is_stored_before_it_is_acknowledged_and_survives_kill_9
        sigterm_drains_and_sends_agents_elsewhere
        sighup_drains_like_sigterm
        an_idle_server_sleeps
        one_idempotency_key_is_one_action
    }
    agent_flow {
        an_agent_never_has_more_than_its_capacity_and_the_urgent_goes_first
        what_an_agent_says_it_runs_is_not_delivered_again
        a_failed_run_is_followed_by_another_up_to_max_runs
        a_cancel_reaches_the_agent_and_is_final
        a_run_that_a_cancel_killed_is_cancelled_and_not_run_again
        a_cancelled_result_counts_only_when_the_action_was_cancelled
        a_command_for_an_agent_that_stays_away_expires_after_the_grace
        who_takes_a_command_and_never_answers_has_timed_out_and_gets_the_next_one
        without_received_a_delivery_has_failed_and_is_tried_again_up_to_max_deliveries
        agents_that_stop_reading_cost_little_and_are_dropped_and_get_their_commands_later
        a_paused_action_delivers_nothing_until_it_is_resumed
        a_retry_is_a_new_action_over_those_that_failed
    }
    agent_clock {
        commands_run_whatever_happens_to_the_wall_clock_of_their_agent
        a_command_that_arrives_after_its_expiry_is_not_run_and_is_expired
        an_agent_says_that_a_command_has_expired_and_is_believed_when_it_has
    }
    enrolling {
        an_enroll_answer_that_got_lost_is_repeated_under_the_same_nonce
        two_enrolls_under_one_nonce_leave_one_agent_with_one_token
        an_agent_whose_enroll_answer_got_lost_connects
        names_that_are_a_folder_are_refused
        the_last_admin_token_stays_and_a_lost_one_is_replaced
    }
    agent_input {
        frames_that_are_none_close_the_connection_and_only_that
        who_says_nothing_is_closed_after_ten_seconds
        results_of_what_is_not_ones_own_or_not_due_are_rejected_with_a_reason
        an_agent_that_is_disabled_or_removed_before_it_says_hello_is_not_let_in
        an_agent_that_is_disabled_or_removed_is_cut_off_though_nothing_says_so
        an_agent_whose_clock_is_years_off_is_served_like_any_other
        a_newer_connection_of_an_agent_takes_over_and_nothing_is_lost
        tokens_open_what_they_are_for_and_nothing_else
    }
    agent_programs {
        what_a_killed_agent_ran_is_gone_before_the_next_run_starts
        a_stopped_run_leaves_no_process
        what_a_run_detached_lives_after_its_end
        a_hang_up_stops_an_agent_and_its_programs
    }
    check_in {
        commands_are_asked_for_received_and_answered_over_plain_http
        a_waiting_check_in_is_answered_when_something_is_due
        an_agent_that_is_disabled_while_it_waits_is_told_nothing
    }
    clients {
        a_python_client_finds_everything_as_described
        a_shell_with_curl_finds_everything_as_described
        a_tester_finds_no_answer_that_is_not_in_the_document
    }
    http_api {
        a_target_is_previewed_and_agents_are_listed_and_shown
        events_tell_the_progress_and_the_end_of_an_action
        commands_are_streamed_as_lines_of_json_and_as_csv
        bodies_may_be_packed_and_what_is_ambiguous_is_refused_at_every_door
        an_agent_is_labelled_disabled_and_let_in_again
        a_removed_agent_leaves_nothing_pending_and_its_name_is_free
        metrics_are_counted_and_guarded
    }
    kill {
        kill_9_at_any_moment_loses_nothing_and_repeats_nothing
    }
        retention {
        actions_go_when_they_have_been_over_for_long_enough
    }
    recording {
        two_hundred_thousand_commands_go_out_in_their_time_over_a_kill
        what_is_urgent_displaces_what_has_time_and_nothing_is_lost
    }
    scale {
        a_hundred_thousand_commands_are_stored_once_in_bounded_memory_and_cancelled_over_a_kill
        an_agent_that_connects_after_many_actions_gets_all_of_them_in_order_and_soon
    }
    schedules {
        a_schedule_is_kept_changed_previewed_and_removed
        agents_get_each_occurrence_with_its_time
        an_agent_that_is_away_holds_up_no_other
        a_kill_in_the_middle_makes_no_occurrence_twice_and_loses_none
        new_zone_data_are_used_while_the_server_runs
    }
    metadata {
        what_an_agent_reports_is_stored_shown_and_matched
        an_answered_report_survives_a_kill_and_a_stop_writes_what_waits
        nothing_acknowledged_is_lost_to_kills_and_restarts_of_the_database
        watchers_see_a_snapshot_and_then_what_changes
        the_reference_agent_reports_what_its_programs_print
        an_agent_joins_a_live_action_by_what_it_reports
        a_connected_agent_is_seen_and_one_that_checks_in_too
    }
    startup {
        a_start_that_cannot_listen_leaves_the_store_untouched
        a_start_without_its_certificate_leaves_the_store_untouched
    }
    open_files {
        connections_leave_files_to_the_store_and_the_spool
    }
    refusals {
        a_result_that_the_store_refuses_is_rejected_and_stops_nobody
        a_result_that_keeps_failing_stops_nobody_is_shown_and_is_rejected_in_the_end
        a_file_that_cannot_be_stored_stops_no_other
    }
    spool_input {
        a_file_that_is_no_action_fails_with_a_problem_that_names_the_place
        what_is_not_a_regular_readable_file_fails_and_no_link_is_followed
        one_id_is_one_action_whatever_files_carry_it
        a_name_that_is_taken_gets_a_suffix_and_nothing_is_overwritten
        files_that_a_crash_left_in_cur_are_taken_again_and_are_the_same_actions
        thousands_of_files_at_once_become_as_many_actions
    }
}

#[cfg(feature = "webhook")]
mod by_webhook {
    on_both! {
        webhook {
            what_a_receiver_answers_decides_what_becomes_of_a_command
            special_addresses_are_not_called_whatever_the_proxy_unless_they_are_allowed
            hosts_that_hang_drip_or_close_hold_up_no_other
            a_kill_in_the_middle_loses_no_webhook
        }
    }
}

#[cfg(feature = "webhook")]
mod with_hooks {
    on_both! {
        hooks {
            an_event_is_delivered_across_a_kill_between_its_commit_and_its_sending
        }
    }
}

#[cfg(feature = "smtp")]
mod by_mail {
    on_both! {
        smtp {
            messages_become_mails_and_the_mail_server_decides_what_becomes_of_them
            while_the_mail_server_is_away_commands_stay_pending_and_no_attempt_is_counted
            a_schedule_reaches_agents_of_every_transport_each_by_its_own_sender
        }
    }
}

#[cfg(feature = "nats")]
mod with_nats {
    on_both! {
        nats {
            every_command_runs_once_though_the_broker_is_killed_in_the_middle
            a_broker_that_is_away_at_the_start_holds_up_nothing
            an_agent_that_comes_later_gets_what_is_open_and_neither_what_is_cancelled_nor_what_has_expired
            a_cancel_reaches_a_busy_agent
            messages_that_cannot_be_used_are_put_aside_with_the_reason
            an_agents_credentials_reach_nothing_of_another
            ten_thousand_agents_get_one_action
        }
    }
}

#[cfg(feature = "amqp")]
mod with_amqp {
    on_both! {
        amqp {
            every_command_runs_once_though_the_broker_is_killed_in_the_middle
            a_broker_that_comes_later_and_loses_a_queue_costs_nothing
            an_agent_whose_queue_was_removed_gets_it_back_when_it_comes
            an_agent_that_comes_later_gets_what_is_open_and_neither_what_is_cancelled_nor_what_has_expired
            messages_that_cannot_be_used_are_put_aside_with_the_reason
            an_agents_credentials_reach_nothing_of_another
            a_broker_is_spoken_to_over_tls_if_its_authority_is_trusted
        }
    }
}

#[cfg(feature = "failpoints")]
mod with_faults {
    on_both! {
        faults {
            nothing_is_lost_whichever_actor_panics
            nothing_of_a_call_that_crashed_is_written_by_the_next_one
            an_actor_that_restarts_do_not_help_ends_the_server_and_the_next_start_goes_on
            a_crashed_connection_whose_agent_stays_away_does_not_hold_up_the_stop
        }
    }
}
