"""Faults that the program must survive, what it promises then, and the tests that check this.

docs/generate.py makes a page of this table, and test_matrix.py checks that the tests exist.
"""

from typing import NamedTuple


class Fault(NamedTuple):
  """A fault: what happens, what the program promises, and 'FILE::TEST' below tests/."""

  what: str
  promise: str
  tests: tuple[str, ...]


PROCESSES, BARRIER = "test_processes.py", "devices/test_barrier.py"
RUNS, PEERS, CHECKPOINT = "test_runs.py", "test_peers.py", "runs/test_checkpoint.py"
CLUSTER, COMPILED = "devices/test_cluster.py", "devices/test_compilation_cache.py"
PREEMPTION, SIGNALS = "devices/test_preemption.py", "devices/test_signals.py"
CHILDREN, HANGS = "devices/test_children.py", "faults/test_hangs.py"
SURROUNDINGS, HOSTILE = "faults/test_surroundings.py", "faults/test_hostile.py"
EXPORT, FORMER, FILES = "hub/test_export.py", "runs/test_former.py", "test_files.py"
PREPARE, CLI, UPKEEP = "data/corpus/test_prepare.py", "test_cli.py", "runs/test_upkeep.py"


def _fault(what: str, promise: str, **tests: str) -> Fault:
  """Returns a line of the table; `tests` maps names of the constants above to names of tests."""
  names = [f"{globals()[file]}::test_{name}" for file, found in tests.items()
           for name in found.split()]
  return Fault(what, promise, tuple(names))


def _also(fault: Fault, *tests: str) -> Fault:
  return fault._replace(tests=(*fault.tests, *tests))


FAULTS = (
    _fault("kill -9 in training",
           "after a restart, the run ends like an undisturbed one, bit for bit",
           RUNS="a_run_killed_again_and_again_ends_the_same"),
    _fault("kill -9 in a save", "the previous checkpoint is used; the run ends the same",
           RUNS="a_run_killed_in_a_save_resumes",
           CHECKPOINT="kill_during_a_save_leaves_the_step_before many_kills_during_saves"),
    _fault("SIGTERM", "75 with a checkpoint; after a restart, the run ends the same",
           RUNS="a_signal_saves_the_step_and_exits_with_75 "
                "a_resumed_run_is_the_undisturbed_one_bit_for_bit "
                "a_resumed_run_logs_every_step_once_with_the_same_values"),
    _fault("SIGTERM in a save", "75 after the save", RUNS="a_signal_in_a_save_waits_for_it"),
    _fault("SIGTERM in an evaluation",
           "75 before its end, with the step saved; the next start evaluates the step again",
           RUNS="a_signal_in_an_evaluation_does_not_wait_for_its_end "
                "a_signal_in_an_evaluation_stops_two_processes_at_one_batch"),
    _fault("SIGTERM to one of several processes", "all save the same step and end with 75",
           RUNS="two_processes_stop_together_and_one_resumes"),
    _fault("SIGTERM during imports, preparation or waits",
           "75, nothing is left behind; a second signal ends it at once",
           SIGNALS="a_training_stopped_while_it_imports_ends_with_75 "
                   "a_signal_during_garbage_collection_is_not_lost "
                   "a_process_of_several_stopped_before_the_loop_ends_all_with_75 "
                   "a_second_signal_ends_the_process_at_once",
           PREEMPTION="the_first_signal_is_noted_and_the_second_ends_the_process"),
    _fault("Ctrl-C, once or twice", "75 in the loop, 130 outside of it, never a traceback",
           RUNS="a_signal_saves_the_step_and_exits_with_75", CLI="interrupt_is_one_line",
           PREEMPTION="the_first_ctrl_c_is_noted_and_the_second_is_not"),
    _fault("a closed terminal (SIGHUP)", "like SIGTERM; the lost terminal is no error",
           RUNS="a_closed_terminal_stops_a_run_as_a_signal_does"),
    _fault("kill -9 of one of several processes",
           "the others end with 69 within seconds, even in a save",
           RUNS="a_lost_peer_ends_the_other_with_69_and_both_resume",
           PEERS="a_peer_killed_in_a_save_is_a_lost_peer"),
    _fault("one of several processes is stopped (SIGSTOP)",
           "the others end with 69 within 100 s, because its heartbeats are missing",
           HANGS="a_stopped_peer_is_a_lost_one"),
    _fault("a process that is alive but stuck",
           "1, after printing the stacks of all threads; the others end",
           HANGS="a_process_that_is_alive_but_stuck_ends_all"),
    _fault("port in use", "2, and the error names the port", CLUSTER="a_taken_port_is_refused"),
    _fault("a process is missing at the start", "69, and the error names the process",
           CLUSTER="process_0_names_who_is_missing a_missing_process_0_is_an_error"),
    _fault("a process compiles for longer than the others",
           "they wait for system.compile_timeout_minutes, then end with 69 and name it",
           BARRIER="a_process_that_compiles_for_longer_is_waited_for "
                   "who_does_not_reach_a_point_is_named_with_its_host"),
    _fault("processes with other flags, configs or versions",
           "2 in all of them, listing every difference, before anything is written",
           PEERS="processes_with_different_configs_are_refused_before_anything_is_made"),
    _fault("a process computes something else", "its state is not saved: 69"),
    _fault("one of several processes fails", "all end within seconds with its exit code",
           PEERS="a_locked_workdir_ends_both_with_2 a_process_that_cannot_write_ends_both_with_74"),
    _fault("disk full", "74, one line; earlier checkpoints stay",
           CHECKPOINT="a_full_disk_is_reported_and_the_step_is_not_listed "
                      "a_file_that_may_not_grow_is_reported_and_the_step_is_not_listed "
                      "the_error_of_a_full_disk_is_the_only_line",
           RUNS="a_full_disk_ends_the_run_with_74_and_it_resumes",
           PEERS="a_process_that_cannot_write_ends_both_with_74", PREPARE="a_full_disk"),
    _fault("read-only workdir", "74 before anything is compiled",
           CHECKPOINT="a_workdir_that_cannot_be_written",
           CLI="workdir_that_is_a_file_is_left_as_it_is workdir_without_permission_is_one_line"),
    _fault("checkpoint with a truncated, changed, empty or missing file",
           "set aside with a warning; the previous checkpoint is used",
           CHECKPOINT="damage_to_any_file_is_found "
                      "a_damaged_newest_step_is_set_aside_and_the_one_before_is_used "
                      "other_values_under_right_hashes_are_found_by_the_fingerprint",
           RUNS="the_checkpoint_before_a_damaged_one_is_used"),
    _fault("junk among checkpoints, a checkpoint renamed to another step", "never used",
           CHECKPOINT="other_directories_are_never_the_newest_step "
                      "an_empty_directory_is_not_a_step "
                      "a_step_copied_under_another_number_is_damaged a_file_too_many_is_damage"),
    _fault("all checkpoints damaged", "65 at every start; nothing is overwritten",
           CHECKPOINT="no_usable_step_is_an_error_every_time",
           RUNS="nothing_is_overwritten_if_all_checkpoints_are_damaged"),
    _fault("checkpoints lost", "65; the run does not start over, and its curves stay",
           RUNS="a_run_whose_checkpoints_are_gone_is_not_begun_again"),
    _fault("another mesh", "the same state bit for bit, the same losses up to rounding",
           CHECKPOINT="state_moves_between_meshes_bit_for_bit",
           RUNS="another_mesh_gives_the_same_losses_from_the_same_rows"),
    _fault("another number of processes", "the same rows, and the same losses up to rounding",
           RUNS="four_processes_finish_what_two_began two_processes_stop_together_and_one_resumes",
           PROCESSES="a_run_of_two_processes_is_continued_by_one_three_and_six"),
    _fault("another config, corpus or tokenizer",
           "2 or 65, listing every difference; nothing changes",
           RUNS="a_changed_config_is_refused_field_by_field "
                "a_run_resumes_only_with_its_own_data_and_config",
           CHECKPOINT="a_state_of_another_structure_is_refused_by_name"),
    _fault("rollback", "later checkpoints are set aside; training again gives the same result",
           UPKEEP="a_rollback_sets_aside_what_is_later "
                  "a_run_trained_again_after_a_rollback_ends_the_same"),
    _fault("two runs in one workdir", "2 in all processes of the second; the error names the first",
           RUNS="a_second_run_is_refused_while_the_first_lives",
           PEERS="a_locked_workdir_ends_both_with_2"),
    _fault("NaN in one step", "only the counters change"),
    _fault("NaN in many steps", "70, the last good checkpoint stays",
           RUNS="a_run_that_diverges_keeps_its_last_good_checkpoint"),
    _fault("a spike of the loss", "with the spike guard, only the counters change"),
    _fault("damaged corpus", "65, and the error names the shard"),
    _fault("workers of prepare killed or stopped",
           "killed: 137; stopped: 1; no files that look finished are left",
           PREPARE="a_worker_that_dies kill_9_leaves_nothing_that_looks_finished",
           HANGS="workers_of_prepare_that_are_stopped_or_killed_end_it"),
    _fault("reader processes killed or stopped", "killed: 137; stopped: 1; the run resumes",
           HANGS="readers_that_are_stopped_or_killed_end_the_run"),
    _fault("trainer killed with reader processes", "the readers end too",
           CHILDREN="reader_processes_do_not_outlive_their_parent"),
    _fault("sweep killed", "its run saves a checkpoint and ends",
           CHILDREN="a_command_that_was_started_is_stopped_when_its_parent_is_killed"),
    _fault("a wait without end", "the watchdog ends it, and prints the stacks of all threads"),
    _fault("script without a main guard", "works, even with worker and reader processes",
           CHILDREN="a_script_without_a_main_guard_prepares_a_corpus "
                    "a_script_without_a_main_guard_trains_with_reader_processes"),
    _fault("empty, blank or tiny corpus", "65; nothing is left behind", PREPARE="too_little_text"),
    _fault("odd text", "read, or an error that names file and byte"),
    _fault("bad tokenizers and vocabularies", "65 or 2, one line",
           CLI="tokenizer_of_another_corpus_is_refused"),
    _fault("bad flags, recipes, shapes", "2, all problems at once, one line each",
           CLI="wrong_flags_are_one_line all_problems_of_a_config_are_listed_at_once "
               "broken_recipe_is_one_line_that_names_file_and_line"),
    _fault("metrics or TensorBoard cannot be written", "a warning; training continues unchanged",
           RUNS="observers_that_fail_change_nothing"),
    _fault("no network, no environment, another locale or time zone",
           "the same run, bit for bit, and the same corpus",
           SURROUNDINGS="a_run_needs_no_network_and_no_environment "
                        "the_locale_does_not_change_a_corpus"),
    _fault("a wall clock that jumps by a year", "the same run, bit for bit",
           SURROUNDINGS="a_clock_that_jumps_a_year_to_and_fro_changes_nothing"),
    _fault("compilation cache damaged", "programs are compiled again",
           SURROUNDINGS="a_damaged_compilation_cache_changes_nothing"),
    _fault("export killed, or its target exists",
           "never half an export; the next export removes leftovers",
           EXPORT="a_killed_export_leaves_nothing_to_the_next",
           FILES="what_a_killed_process_leaves_of_a_folder_is_removed_by_the_next"),
    _fault("a run of an earlier version, with a field that this version ignored",
           "it continues to ignore the field", FORMER="an_old_run_continues_as_it_began"),
    _fault("secrets in the environment", "not in anything that a run writes or prints",
           SURROUNDINGS="secrets_of_the_environment_are_in_nothing_that_a_run_leaves"),
    _fault("a machine that can reach the internet", "the program tries no connection",
           SURROUNDINGS="a_run_does_not_try_to_reach_a_network"),
    _fault("2,000 mutations of a SentencePiece model", "loaded, or 65 in one line; no crash",
           HOSTILE="mutations_of_a_sentencepiece_model_are_loaded_or_refused"),
    _fault("a small archive of a huge text", "read with little memory; 65 if it is not text",
           HOSTILE="a_small_archive_of_a_huge_text_is_refused_in_little_memory"),
    _fault("pickles and code in a workdir", "not executed",
           CHECKPOINT="a_file_too_many_is_damage"),
    _fault("crafted models and configs", "65, one line"),
    _fault("compilation cache that others can write", "2; nothing in it is executed",
           COMPILED="the_compilation_cache_is_private "
                    "a_compilation_cache_that_others_can_write_is_refused "
                    "a_compilation_cache_of_another_user_is_refused"),
    _fault("a run on the loopback interface", "listens only there",
           CLUSTER="a_run_on_the_loopback_listens_there_only"),
    _fault("preemption under a scheduler", "started again; attempts without progress are limited"),
)

# Tests of modules that have no other faults.
MORE = {
    "SIGTERM in an evaluation": (
        "finetuning/test_resume.py::test_a_run_that_was_stopped_ends_as_if_it_had_not_been",),
    "a process computes something else": (
        "runs/test_replicas.py::test_a_copy_that_differs_is_named_and_not_saved",),
    "a closed terminal (SIGHUP)": (
        "training/test_sinks.py::test_a_closed_terminal_does_not_end_the_work",),
    "processes with other flags, configs or versions": (
        "devices/test_agreement.py::test_every_difference_is_named_in_every_process",
        "devices/test_agreement.py::test_other_versions_are_a_difference",
        "finetuning/test_finetune.py::test_processes_that_would_do_different_runs_are_refused"),
    "one of several processes fails": (
        "devices/test_shutdown.py::test_an_error_ends_all_processes_with_its_code",
        "devices/test_shutdown.py::test_a_bug_in_one_process_ends_all_with_1",
        "devices/test_shutdown.py::test_who_loses_a_peer_ends_with_the_code_of_the_cause"),
    "SIGTERM to one of several processes": (
        "devices/test_guard.py::test_a_signal_right_after_the_fork_is_passed_on",
        "devices/test_guard.py::test_a_signal_reaches_the_worker_once"),
    "checkpoints lost": (
        "runs/test_history.py::test_a_run_that_has_saved_a_checkpoint_is_not_begun_again",
        "training/test_writer.py::test_the_curves_of_a_start_without_a_checkpoint_are_set_aside"),
    "NaN in one step": (
        "training/test_steps.py::test_a_step_that_is_not_finite_changes_nothing_but_the_counters",),
    "a spike of the loss": (
        "training/test_spikes.py::"
        "test_a_spike_changes_nothing_but_the_counters_and_the_next_step_is_applied",
        "training/test_spikes.py::test_the_guard_is_that_of_plain_python"),
    "damaged corpus": (
        "data/corpus/test_corpus.py::test_flipped_bits_in_a_shard_are_never_read",
        "data/corpus/test_corpus.py::test_a_shard_cut_after_opening",
        "data/corpus/test_corpus.py::test_damage_that_opening_finds"),
    "trainer killed with reader processes": (
        "data/batches/test_loader.py::"
        "test_reader_processes_make_the_same_batches_and_their_death_is_an_error",),
    "sweep killed": (
        "training/test_sweep.py::test_a_killed_run_is_no_success",),
    "a wait without end": (
        "devices/test_watchdog.py::test_a_process_that_hangs_is_ended_and_shows_where",
        "devices/test_watchdog.py::test_compilation_has_its_own_allowance"),
    "odd text": (
        "fuzz/test_sources.py::test_any_bytes_are_read_or_refused",
        "data/text/test_intake.py::test_error_names_file_and_byte",
        "data/text/test_intake.py::test_a_number_of_5000_digits_is_an_error_with_its_place"),
    "bad tokenizers and vocabularies": (
        "fuzz/test_tokenizers.py::test_damaged_files_are_loaded_or_refused",
        "data/tokens/test_tokenizers.py::"
        "test_a_file_that_is_not_a_tokenizer_is_one_line_that_names_it"),
    "metrics or TensorBoard cannot be written": (
        "training/test_sinks.py::test_a_full_disk_costs_points_and_a_line_per_file",
        "runs/test_metrics_file.py::test_a_damaged_line_costs_no_other_line"),
    "export killed, or its target exists": (
        "hub/test_export.py::test_export_refuses_a_folder_that_exists",
        "hub/test_export.py::test_an_export_that_fails_leaves_nothing"),
    "pickles and code in a workdir": (
        "config/test_stored.py::test_json_runs_no_code",),
    "crafted models and configs": (
        "hub/test_importing.py::test_import_names_what_is_wrong",
        "fuzz/test_hub.py::test_damaged_files_are_imported_or_refused",
        "test_files.py::test_every_failure_to_parse_is_one_kind_of_error"),
    "preemption under a scheduler": (
        "launch/test_tpu_pod.py::test_a_run_is_started_again_unless_that_is_useless",
        "launch/test_tpu_pod.py::test_slices_that_are_gone_are_created_again",
        "launch/test_slurm.py::test_a_job_is_requeued_unless_that_is_useless",
        "launch/test_slurm.py::test_a_job_without_progress_ends",
        "launch/test_real_slurm.py::test_a_preemption_saves_and_requeues",
        "launch/test_files.py::test_the_job_acts_on_exit_codes"),
}
MATRIX = tuple(_also(fault, *MORE.get(fault.what, ())) for fault in FAULTS)

# What `make soak` and `make recovery` have printed.
SOAKS = """
| 20 minutes each | 1 process, seed 1 | 2 processes, seed 2 |
|---|---|---|
| rounds, all bit-identical | 12 | 3 |
| starts | 51 | 15 |
| ended by SIGKILL | 6 | 1 |
| by SIGTERM | 11 | 1 |
| by SIGINT | 6 | 0 |
| by SIGTERM, then SIGKILL | 11 | 3 |
| by a full disk | 5 | 5 |
| by a peer that was stopped | - | 2 |
| stopped for some seconds, then continued | 10 | 2 |
| checkpoints damaged before a start | at least 21 | at least 6 |
"""
RECOVERY = """
| fault | repetitions | end, median | end, longest | back, median |
|---|---|---|---|---|
| SIGKILL of process 1 | 5 | 5.4 s | 6.1 s | 26.2 s |
| SIGKILL of process 1 in a save | 5 | 5.4 s | 6.4 s | 29.0 s |
| process 1 stopped | 3 | 60.4 s | 65.6 s | 47.7 s |
| disk of process 1 full | 3 | 7.1 s | 7.7 s | 32.5 s |
| disk of one process full (in the soak) | 5 | 14.7 s | 45.6 s | - |
"""
MACHINE = ("Measured on two cores, on which other programs kept 8 to 16 processes busy, with a "
           "model of 2 layers of width 32 and a checkpoint every 10 steps. Most of the time to be "
           "back is the start of Python and JAX. After a kill, process 0 holds its end back for "
           "5 s, so that the others learn the reason.")
