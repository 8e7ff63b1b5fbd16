#!/usr/bin/env bash
{# A template of `restomod launch --on torchrun`. Every value is quoted for a shell when it is filled
   in. -#}
# Runs one node wrapper on each host, and all of them again when the run has saved and wants to go on.
set -u
{% if hosts %}
hosts=({{ hosts }})
{% endif %}

# shellcheck disable=SC2329,SC2317
node() { # runs on a host: the node's number
  cd {{ job.workdir }} || exit 2
{% if profile.secrets_file %}
  set -a
  # shellcheck source=/dev/null
  source {{ profile.secrets_file }} || exit 2
  set +a
{% endif %}
{% for name, value in env.items() %}
  export {{ name }}={{ value }}
{% endfor %}
  exec {{ command }} \
    --node-rank "$1" \
    --rendezvous {{ (hosts[0] if hosts else "localhost") ~ ":" ~ profile.port }} \
    -- {{ words }}
}

pids=()
stopped=
stop() {
  stopped=yes
  kill -TERM "${pids[@]}" 2>/dev/null # each wrapper lets its ranks save
}
trap stop INT TERM HUP

start() { # runs the nodes to their end; the code that counts
  pids=()
{% if hosts %}
  for rank in "${!hosts[@]}"; do
    {{ profile.torchrun.remote_shell }} "${hosts[rank]}" "$(declare -f node); node $rank" &
    pids+=($!)
  done
{% else %}
  (node 0) &
  pids+=($!)
{% endif %}
  local seen=" " code pid
  for pid in "${pids[@]}"; do
    wait "$pid"
    code=$?
    while kill -0 "$pid" 2>/dev/null; do # a trap ends a wait
      wait "$pid"
      code=$?
    done
    seen+="$code "
  done
  for code in 2 130 75; do # a mistake, a person's stop, saved
    [[ $seen == *" $code "* ]] && return "$code"
  done
  [[ ${seen// 0/} == " " ]] || return 1
}

starts=0
while true; do
  start
  code=$?
  starts=$((starts + 1))
  ((code == 75 && starts <= {{ profile.max_requeues }})) && [[ -z $stopped ]] || exit "$code"
  echo "saved; start $((starts + 1))" >&2
done
