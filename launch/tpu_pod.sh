#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and again whenever the run was preempted.
#
#   TPU=my-slice ZONE=us-east5-b launch/tpu_pod.sh \
#     --config configs/bert_base.py --workdir /mnt/runs/bert_base [--config.a.b=c ...]
#
# Edit: CODE, the folder that holds this repository and its .venv on every host
# (`make install`, then `.venv/bin/pip install -e .[tpu]`). DIR of --workdir and the cache of
# --config.data.cache_dir must be on storage that all hosts share.
#
# To stop with a checkpoint saved, from another terminal (Ctrl-C ends only the connection):
#   gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all --command='pkill -TERM bertgpt'
# A slice that was taken away must be created anew; the same command then goes on.
set -uo pipefail

: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"
CODE=${CODE:-bertgpt}
PREEMPTED=75 # a checkpoint is saved: run the same command again

command="cd ${CODE} && .venv/bin/bertgpt train --distributed=auto $(printf '%q ' "$@")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

while true; do
  # The code is printed because gcloud answers for all hosts with a code of its own.
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$command; code=\$?; echo \"bertgpt ended with code \$code\"; exit \$code" |
    tee "$log"
  status=$?
  grep -q "bertgpt ended with code $PREEMPTED\$" "$log" || exit "$status"
  sleep 60
done
