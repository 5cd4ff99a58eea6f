//! What every [`Store`] promises, as tests against the trait.
//!
//! A backend is a file with a [`Backend`] and one line: `cases!(tests! name, Type)`. The cases know nothing of it but the
//! trait and the few things a backend shows of its inside ([`Backend::group_by`] and the like), so that what they find
//! out about the counters doesn't come from the code that keeps them.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod actions;
mod agents;
mod audit;
#[path = "../cluster/mod.rs"]
mod cluster;
mod commands;
mod hooks;
mod listing;
mod live;
mod lost_nodes;
mod metadata;
mod metadata_of_nodes;
mod model;
mod mutations;
mod on_postgres_alone;
mod outcomes;
mod postgres;
mod retention;
mod schedule_policies;
mod schedules;
mod size;
mod sqlite;
mod support;
mod targets;
mod tokens;

use odoshi::domain::counts::Counts;
use odoshi::store::Store;

/// A store of one kind, empty at first, that is gone when it is dropped.
#[allow(async_fn_in_trait, reason = "its callers are in this crate")]
pub trait Backend: Sized {
    /// An empty one of its own.
    async fn fresh() -> Self;

    /// What is tested.
    fn store(&self) -> &dyn Store;

    /// Lets go of the store and opens it again, as another process would.
    async fn reopen(&mut self);

    /// Moves the store's time this far from the machine's, in milliseconds.
    fn set_offset(&self, millis: i64);

    /// The counts of an action from its commands, outcomes and open rows alone (`resolved` is left false).
    async fn group_by(&self, action_no: i64) -> Counts;

    /// The runs of a command of which a late result is kept.
    async fn late_runs(&self, action_no: i64, agent_no: i64) -> Vec<i64>;

    /// The commands of an action that have an open row, as agents' keys in order.
    async fn open_rows(&self, action_no: i64) -> Vec<i64>;

    /// How many rows there are of an action beside its own.
    async fn rows_of(&self, action_no: i64) -> i64;

    /// Deletes the row of an action and leaves all its other rows, as earlier versions could.
    async fn orphan(&self, action_no: i64);

    /// Tries to change what the audit log says.
    async fn change_audit(&self) -> diesel::QueryResult<()>;

    /// From now on, or no longer, events for hooks can't be written.
    async fn refuse_hook_events(&self, refused: bool);

    /// Whether these bytes are anywhere in what the store keeps.
    async fn keeps(&self, bytes: &[u8]) -> bool;

    /// Breaks the database in a way that the suite has to find.
    async fn sabotage(&self, mutation: mutations::Mutation);
}

/// Runs one case. With a thread of its own for the runtime, so that a property test can block on each of its inputs.
fn block_on(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(case);
}

macro_rules! tests {
    ($name:ident, $backend:ty; $($topic:ident { $($case:ident)* })*) => {
        mod $name {
            $(mod $topic {
                $(#[test]
                fn $case() {
                    use crate::Backend as _;
                    crate::block_on(async { crate::$topic::$case(&mut <$backend>::fresh().await).await });
                })*
            })*
        }
    };
}

/// All cases, for another macro that gets them behind its own arguments.
macro_rules! cases {
    ($then:ident! $($arguments:tt)*) => {
        $then! { $($arguments)*;
            actions {
                the_same_id_with_the_same_content_is_one_action
                the_same_id_with_other_content_is_a_conflict
                an_action_is_read_as_it_was_written
                pages_are_written_once_and_in_turn
                a_page_of_another_time_writes_nothing
                pages_of_one_batch_follow_each_other
                nothing_is_resolved_after_a_cancel
                a_cancel_of_what_has_ended_changes_nothing
                nothing_is_resolved_after_an_action_expired
                what_is_resolved_does_not_expire
                expected_agents_are_counted_once
                resolving_goes_on_after_a_restart
                an_action_without_agents_completes
                an_action_completes_when_all_its_commands_are_final_and_not_before
                a_pause_is_of_what_goes_on_alone
                open_actions_are_listed_until_they_end
                unresolved_actions_are_listed_when_their_time_is_near
                lists_show_every_state_newest_first
            }
            commands {
                untouched_commands_are_paged_in_key_order_with_their_due_times
                advancing_never_passes_an_untouched_command_and_gets_to_the_end
                a_backlog_is_ordered_by_priority_and_due_time
                a_backlog_ends_at_the_horizon
                a_backlog_leaves_out_what_is_with_the_agent_or_over
                a_backlog_is_of_open_actions_only
                a_backlog_finds_what_lies_beyond_the_advanced_key
                due_rows_are_those_of_agents_that_this_node_reaches
                due_rows_lie_after_the_first_and_up_to_the_second_time
                what_no_node_has_a_sender_for_is_counted_and_is_not_due
                due_rows_of_one_time_are_read_page_by_page due_rows_of_a_cancelled_action_are_left_out
                overdue_commands_are_found_when_the_timeout_and_the_grace_are_over
                unfinished_commands_are_paged_with_and_without_what_is_with_the_agent
            }
            outcomes {
                the_first_outcome_of_a_run_wins_and_stays
                a_repeated_result_is_stored_once
                a_late_result_is_kept_and_changes_nothing
                a_result_of_another_agent_is_rejected
                a_result_of_a_run_that_is_not_due_is_rejected
                a_failed_run_is_followed_by_another_one
                a_run_that_a_cancel_killed_is_cancelled_whoever_is_first
                an_agent_ends_a_command_as_expired_only_when_it_has
                failed_hand_overs_make_a_command_undeliverable_at_the_limit
                attempts_never_decrease_whoever_reports
                a_report_that_was_wrongly_fresh_is_looked_at
                fresh_reports_and_others_are_recorded_together
                the_reason_of_a_failed_attempt_shows_until_the_command_is_delivered
                one_batch_may_tell_the_whole_life_of_a_command
                one_batch_may_be_about_thousands_of_actions
                what_a_result_says_comes_back_to_the_letter
                outcomes_survive_a_restart
            }
            metadata {
                the_newest_value_of_a_key_wins_and_an_equally_old_one_if_it_comes_later
                values_are_read_by_agent_and_key
                targets_see_the_newest_values
                what_was_written_since_a_time_is_paged_by_agent
                values_go_with_their_agent
                an_agent_is_seen_when_it_is_heard_of_and_online_when_it_has_checked_in
                whatever_comes_in_whatever_order_the_newest_stays
            }
            listing {
                commands_are_paged_by_name
                commands_are_filtered_by_each_state
                a_command_shows_what_was_done_about_it
                a_command_cancelled_between_runs_shows_one_run
                commands_of_an_unknown_action_are_none
            }
            hooks {
                the_end_of_an_action_is_written_once_for_each_hook_that_listens
                an_event_is_written_with_its_change_or_not_at_all
                without_a_hook_that_listens_nothing_is_written
                claimers_at_the_same_time_get_each_event_once
                a_claim_that_is_not_recorded_comes_again_after_its_lease
                a_failed_event_comes_again_at_its_time
                what_was_claimed_again_is_changed_by_its_last_claimer_or_a_delivery
                a_released_event_is_due_at_once_and_not_counted
                what_ended_is_kept_for_its_time
                events_of_hooks_that_are_gone_are_listed_and_given_up
            }
            retention {
                what_is_kept_no_longer_goes_in_small_batches_and_is_out_of_sight_at_once
                what_goes_takes_no_late_results
                rows_without_their_action_are_found_and_deleted
                removed_agents_go_after_the_actions_of_their_time_and_tokens_before_them
            }
            schedule_policies {
                a_trigger_cancels_the_one_before_if_that_is_the_policy
                what_is_missed_is_dropped_as_a_range_and_told
                an_occurrence_is_skipped_while_the_one_before_still_runs
                what_was_cancelled_or_has_expired_runs_no_longer_unless_an_agent_has_it
                occurrences_may_overlap_or_cancel_the_one_before
                of_occurrences_that_are_made_together_the_overlap_policy_leaves_one
                an_outage_of_three_hours_brings_what_the_policy_says
                a_second_after_a_year_is_planned_at_once
            }
            schedules {
                a_schedule_that_cannot_be_planned_shows_its_error_and_holds_up_no_other
                a_name_is_taken_until_its_schedule_is_removed
                a_schedule_is_replaced_if_it_is_what_its_author_knows
                an_occurrence_is_made_once_with_its_action_and_the_next_time
                of_many_that_claim_at_once_each_occurrence_is_made_by_one
                the_time_of_a_pause_is_not_missed
                an_edit_while_it_is_due_leaves_what_was_due_behind
                a_trigger_makes_an_occurrence_whatever_the_schedule_says
                next_times_of_older_zone_data_are_found_and_computed_anew
                lists_are_paged_by_name
                what_is_kept_of_occurrences_is_deleted_after_its_time
            }
            live {
                agents_join_a_live_action_once_and_are_found_by_their_open_row
                a_live_action_ends_when_it_expires_and_not_before
                an_agent_that_joins_before_valid_from_is_due_then
                what_is_frozen_cancelled_or_over_is_not_joined
            }
            audit {
                what_is_changed_is_told_with_who_did_it_newest_first
                what_changes_nothing_is_not_told
                of_long_operations_size_and_hash_are_told
                entries_are_never_changed_and_go_when_they_are_old
            }
            model {
                counts_are_exact_after_every_call_and_states_are_those_of_the_model
            }
            agents {
                a_name_is_enrolled_once
                an_enrolled_agent_shows_its_token
                enrolling_is_repeated_under_its_nonce_until_the_token_is_used
                refreshing_changes_what_targets_see
                labels_of_operators_stay_whatever_the_agent_reports
                disabled_agents_are_listed_when_they_are_asked_for
                of_two_processes_with_one_token_the_later_one_stays
                many_agents_are_read_at_once
                contacts_have_addresses_and_secrets_and_leave_out_disabled_agents
                the_connection_that_was_opened_last_wins_whatever_the_clock_says
                closing_an_older_connection_does_nothing_to_a_newer_one
                a_start_of_the_node_ends_all_sessions
                connections_are_compared_and_written_again
                who_is_not_allowed_opens_no_connection
                agents_survive_a_restart
                an_agent_is_changed_and_removed
            }
            targets {
                long_lists_and_deep_conditions_are_answered
                a_pattern_takes_no_exponential_time
                agents_are_found_by_the_state_of_an_earlier_command
                a_fleet_is_searched_and_counted_part_by_part
                a_search_looks_only_where_agents_can_be
                a_list_goes_on_where_a_part_ended
                a_target_means_the_same_in_the_store_and_in_memory
            }
            tokens {
                a_token_is_found_by_its_hash_while_it_is_valid
                a_revoked_token_is_not_found
                tokens_are_listed_newest_first_without_those_of_agents
                the_store_keeps_the_hash_and_never_the_token
                an_admin_token_is_remembered_even_when_it_is_revoked
                the_last_admin_token_stays
                tokens_survive_a_restart
            }
        }
    };
}

pub(crate) use cases;

cases!(tests! on_sqlite, crate::sqlite::Sqlite);
cases!(tests! on_postgres, crate::postgres::Postgres);
