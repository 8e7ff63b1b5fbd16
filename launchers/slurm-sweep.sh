#!/usr/bin/env bash
{# A template of `restomod sweep --on slurm`: the trials of a job array, or a job's one. Every value is
   quoted for a shell when it is filled in; those of #SBATCH lines are refused where they would need
   quotes. -#}
#SBATCH --job-name={{ name | sbatch }}
{% if array %}
#SBATCH --array={{ array | sbatch }}
{% endif %}
{% if profile %}
{% for option in ("partition", "account", "qos", "constraint") if profile.slurm[option] %}
#SBATCH --{{ option | sbatch }}={{ profile.slurm[option] | sbatch }}
{% endfor %}
#SBATCH --time={{ time_limit | sbatch }}
# The rest of the submitting shell's variables, secrets among them, stay where they are.
#SBATCH --export={{ export | sbatch }}
{% endif %}
#SBATCH --output={{ output | sbatch }}
#SBATCH --open-mode=append
#SBATCH --requeue
# To this script, before the time limit; Slurm may send it up to a minute early.
#SBATCH --signal=B:USR1@{{ grace_s }}
set -u
task=${SLURM_ARRAY_TASK_ID:-{{ trials[0].index }}}
# The number of an array's last task is that of the whole array.
self=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$task}
self=${self:-$SLURM_JOB_ID}

case $task in
{% for trial in trials %}
  {{ trial.index }})
    left={{ trial.code }} run={{ trial.run_folder }}
    command=({{ trial.command }})
    ;;
{% endfor %}
esac

# What the sweep's process waits for.
end() {
  echo "$1" > "$left.new" && mv "$left.new" "$left"
  exit "$1"
}

rm -f "$left"
cd {{ workdir }} || end 2
{% if profile and profile.secrets_file %}
set -a
# shellcheck source=/dev/null
source {{ profile.secrets_file }} || end 2
set +a
{% endif %}
{% if path %}
export PATH={{ path }}:"$PATH"
{% endif %}
{% for variable, value in env.items() %}
export {{ variable }}={{ value }}
{% endfor %}

asked='' child=''
# shellcheck disable=SC2317,SC2329
ask() {
  asked=${asked:-$1}
{% if in_steps %}
  scancel --signal=TERM "$self" # the ranks: srun itself would kill them at a TERM of its own
{% else %}
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
{% endif %}
}
trap 'ask limit' USR1
trap 'ask end' TERM
"${command[@]}" &
child=$!
[ -z "$asked" ] || ask "$asked"
while :; do
  wait "$child"
  code=$?
  if ! [ "$code" -gt 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi
done

if [ -n "$asked" ]; then
  # Ended before it listened, with nothing to save; torchrun hides what its ranks ended with.
  if ((code == 143)) || [ -e "$run/{{ REQUEUE | sbatch }}" ]; then code=75; fi
  # Slurm itself requeues jobs whose node fails and preempted ones.
  if ((code == 75 && ${SLURM_RESTART_COUNT:-0} < {{ max_requeues }})) && [ "$asked" = limit ]; then
    scontrol requeue "$self" && exit "$code"
  fi
fi
end "$code"
