#!/usr/bin/env bash
# Trains on all hosts of one or several Cloud TPU slices, and resumes after a preemption.
#
#   export TPU=my-slice ZONE=us-east5-b
#   launch/tpu_pod.sh --config configs/bert_base.py --workdir /mnt/runs/bert_base \
#     --config.data.corpus=/mnt/corpora/bert [--config.a.b=c ...]
#   launch/tpu_pod.sh attach    # shows the log of the first host, from any machine; Ctrl-C leaves it
#   launch/tpu_pod.sh stop      # saves a checkpoint and ends the run
#   launch/tpu_pod.sh delete    # gives the slices back, with what was queued
#
# The run is detached from this script: it continues on the hosts when this script ends or loses its
# connection. The same command then finds the run, and watches it again. With TYPE, the script also
# creates the slices, and creates them again if they were preempted or have failed:
#
#   TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite  type and software of a slice, as gcloud names them
#   SPOT=1        spot capacity, which is cheaper and may be taken away
#   SLICES=2      several slices, named $TPU-0, $TPU-1, ...; `data` of the mesh goes across them
#   SETUP="..."   command that installs bertgpt in $CODE on a new host, and mounts the storage
#   CREATE_FLAGS  more flags of `queued-resources create`: --reserved, --network=..., --data-disk=...
#
# SSH_FLAGS are more flags of `tpu-vm ssh`, such as --tunnel-through-iap or --internal-ip.
# CODE is the folder with this repository and its .venv on every host (`make install-plan`, and
# `make install-gcs` for paths of gs://). The workdir, and the corpus that `bertgpt prepare` has written,
# must be on storage that all hosts share. On the hosts, log, process ID and exit code are in ~/bertgpt-run.
set -uo pipefail

: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"
CODE=${CODE:-bertgpt}
SLICES=${SLICES:-1}
SPOT=${SPOT:-0}
SETUP=${SETUP:-echo $CODE/.venv/bin/bertgpt is missing, and SETUP is not set >&2 && exit 1}
read -ra CREATE_FLAGS <<<"$(tr '\n' ' ' <<<"${CREATE_FLAGS:-}")"
read -ra SSH_FLAGS <<<"$(tr '\n' ' ' <<<"${SSH_FLAGS:-}")"
GIVE_UP="2|65|70|130"    # Another attempt would end the same way, or somebody pressed Ctrl-C.
SHORT=600                # An attempt of fewer seconds has made no progress,
SHORT_FAULT=10800        # nor has one of fewer seconds that hung (1) or filled the disk (74).
MAX_SHORT=5              # The script gives up after this many of them in a row.
PATIENCE=${PATIENCE:-15} # Looks at a host that does not answer, or that outlives the other hosts.
PAUSE=${PAUSE:-60}       # Seconds between two looks.

case $SPOT in 0 | 1) ;; *) echo "tpu_pod.sh: SPOT=$SPOT: set it to 1 or 0" >&2 && exit 2 ;; esac

queued() { gcloud compute tpus queued-resources "$1" "$TPU" --zone="$ZONE" "${@:2}"; }

say() { echo "tpu_pod.sh: $*" >&2; }

is_alive() { kill -0 $$ 2>/dev/null; } # Asks, in a subshell, for the script itself.

nodes() {
  if [ "$SLICES" -eq 1 ]; then echo "$TPU"; else seq -f "$TPU-%.0f" 0 $((SLICES - 1)); fi
}

ssh_to() { # NODE FLAGS...
  gcloud compute tpus tpu-vm ssh "$1" --zone="$ZONE" "${SSH_FLAGS[@]}" "${@:2}" </dev/null
}

on_hosts() { # COMMAND: runs it on all hosts of all slices at once; fails if it fails on one of them.
  local node pids=() failed=0
  for node in $(nodes); do
    ssh_to "$node" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

slice_state() { # Prints ACTIVE, SUSPENDED, ..., ABSENT, or UNKNOWN if gcloud cannot tell.
  local answer
  if [ -z "${TYPE:-}" ]; then
    answer=$(gcloud compute tpus tpu-vm describe "$(nodes | head -n 1)" --zone="$ZONE" \
      --format="value(state)" 2>&1)
  else
    answer=$(queued describe --format="value(state.state)" 2>&1)
  fi
  case $answer in *NOT_FOUND* | *"not found"*) answer=ABSENT ;; esac
  answer=$(grep -xE "[A-Z_]+" <<<"$answer" | tail -n 1) # Without gcloud's notices about updates.
  if [ "$answer" = READY ]; then answer=ACTIVE; fi
  echo "${answer:-UNKNOWN}"
}

create() {
  local names=(--node-id="$TPU") spot=""
  [ "$SPOT" = 0 ] || spot=--spot
  [ "$SLICES" -eq 1 ] || names=(--node-prefix="$TPU" --node-count="$SLICES")
  queued create "${names[@]}" --accelerator-type="$TYPE" \
    --runtime-version="${VERSION:?set it to the software of the slice}" ${spot:+"$spot"} \
    "${CREATE_FLAGS[@]}"
}

wait_for_slice() { # Returns when the slices are there; creates what is gone.
  local state failures=0
  while true; do
    state=$(slice_state)
    case $state in
      ACTIVE) return 0 ;;
      ABSENT | SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED)
        if [ -z "${TYPE:-}" ]; then
          say "$TPU is $state. Create it again, or set TYPE and VERSION, so that this script does"
          return 1
        fi
        say "$TPU is $state; creating it"
        [ "$state" = ABSENT ] || queued delete --force --quiet
        if create; then failures=0; else failures=$((failures + 1)); fi ;;
      UNKNOWN) failures=$((failures + 1)) ;;
      *) failures=0 ;; # It may wait for days until there is capacity.
    esac
    if [ "$failures" -ge "$PATIENCE" ]; then
      say "gcloud has failed $failures times in a row. Its messages are above, or those of: gcloud" \
        "auth list"
      return 1
    fi
    sleep "$PAUSE"
  done
}

# What runs on the hosts. A process ID may be used again after a reboot, so commands are compared.
# shellcheck disable=SC2016 # The hosts expand it.
IS_RUNNING='grep -qs bertgpt "/proc/$(cat pid 2>/dev/null)/cmdline"'
LOOK="mkdir -p ~/bertgpt-run && cd ~/bertgpt-run || exit 1
if $IS_RUNNING; then echo 'bertgpt is running'
elif [ -f code ]; then echo \"bertgpt ended with code \$(cat code)\$([ ! -f stop ] || echo ', stopped')\"
else echo 'bertgpt is gone'; fi"
# shellcheck disable=SC2016 # The hosts expand it.
STOP='cd ~/bertgpt-run && touch stop && pkill -TERM -P "$(cat pid)" -f bertgpt'
# shellcheck disable=SC2016 # The hosts expand it.
KILL='cd ~/bertgpt-run && pkill -KILL -s "$(cat pid)" -f bertgpt; true'

start() { # Starts the run on all hosts, detached from the connection.
  local run inside
  printf -v run '%q ' .venv/bin/bertgpt train --distributed=auto "$@"
  # A host without TPUs fails, and does not train on its CPUs.
  inside="cd && cd $(printf %q "$CODE") && { JAX_PLATFORMS=tpu,cpu $run; echo \$? > ~/bertgpt-run/code; }"
  on_hosts "mkdir -p ~/bertgpt-run && cd ~/bertgpt-run || exit 1
    (cd && { test -x $(printf %q "$CODE")/.venv/bin/bertgpt || { $SETUP
    }; }) || exit 1 # SETUP may end with a semicolon or a comment.
    $IS_RUNNING && exit; rm -f code stop
    setsid bash -c $(printf %q "$inside") >> log 2>&1 </dev/null & echo \$! > pid"
}

follow() { # Shows the log of the first host, again and again after a lost connection.
  while is_alive; do
    ssh_to "$(nodes | head -n 1)" --worker=0 --command="tail -n ${1:-20} -F ~/bertgpt-run/log"
    sleep "$PAUSE"
  done
}

follower=""
unfollow() {
  [ -z "$follower" ] || kill -- "-$follower" 2>/dev/null
  follower=""
}
ends_file=$(mktemp)
trap 'unfollow; rm -f "$ends_file"' EXIT
# Only `wait` is interrupted by a signal: a command substitution would be waited for.
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 130' INT # gcloud catches Ctrl-C itself, and bash would continue.

watch() { # Waits until the run has ended on all hosts, and prints how; "lost" if they are gone.
  local found silent=0 last=0
  while is_alive; do
    sleep "$PAUSE"
    if [ "$(slice_state)" != ACTIVE ]; then silent=$((silent + 5)); fi
    if found=$(on_hosts "$LOOK" 2>/dev/null); then silent=0; else silent=$((silent + 1)); fi
    found=$(grep -oE "bertgpt (is running|is gone|ended with code .*)" <<<"$found")
    if [ "$silent" -ge "$PATIENCE" ]; then echo lost; return; fi
    [ "$silent" -eq 0 ] || continue
    if ! grep -q "is running" <<<"$found"; then echo "$found"; return; fi
    # The others end within two minutes after one has ended.
    if grep -qv "is running" <<<"$found"; then last=$((last + 1)); else last=0; fi
    [ "$last" -lt "$PATIENCE" ] || on_hosts "$KILL"
  done
}

train() {
  local ends final short=0 begin limit
  while true; do
    wait_for_slice || exit 69
    begin=$(date +%s)
    if start "$@"; then
      set -m # In a process group of its own, which `unfollow` ends with all its children.
      follow &
      follower=$!
      set +m
      watch > "$ends_file" &
      wait "$!"
      ends=$(< "$ends_file")
      unfollow
    else
      ends="not started"
    fi
    say "all hosts: $(sort <<<"$ends" | uniq -c | tr -s ' \n' ' ')"
    grep -qvx "bertgpt ended with code 0" <<<"$ends" || exit 0
    final=$(grep -m 1 -oE "code ($GIVE_UP)\b|code .*, stopped" <<<"$ends")
    [ -z "$final" ] || { final=${final#code }; exit "${final%, stopped}"; }
    # All other codes, such as 69, 74, 75 or 137, and lost slices lose no more than the steps since
    # the last checkpoint.
    limit=$SHORT
    ! grep -qE "code (1|74)$" <<<"$ends" || limit=$SHORT_FAULT
    if [ $(($(date +%s) - begin)) -lt "$limit" ]; then short=$((short + 1)); else short=0; fi
    if [ "$short" -ge "$MAX_SHORT" ]; then
      say "gave up after $short attempts in a row of less than $limit s"
      exit 69
    fi
    sleep "$PAUSE"
  done
}

case ${1:-} in
  attach) follow 1000 ;;
  stop)
    if ! on_hosts "$STOP"; then
      say "bertgpt does not run on all hosts. End the script that watches the run too: it starts it" \
        "again"
      exit 1
    fi ;;
  delete) queued delete --force --quiet ;;
  train) train "${@:2}" ;;
  --*) train "$@" ;;
  *) say "give the flags of \`bertgpt train\`, or one of: attach, stop, delete"; exit 2 ;;
esac
