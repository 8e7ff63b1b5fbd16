#!/usr/bin/env bash
{# A template of `restomod launch --on slurm`. Every value is quoted for a shell when it is filled in;
   those of #SBATCH lines are refused where they would need quotes. -#}
#SBATCH --job-name={{ run_name | sbatch }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
{% if gpus %}
#SBATCH --gpus-per-node={{ gpus }}
{% endif %}
{% if profile.slurm.exclusive %}
#SBATCH --exclusive
#SBATCH --mem=0
{% endif %}
{% if profile.slurm.cpus %}
#SBATCH --cpus-per-task={{ profile.slurm.cpus }}
{% endif %}
{% for option in ("partition", "account", "qos", "constraint") if profile.slurm[option] %}
#SBATCH --{{ option | sbatch }}={{ profile.slurm[option] | sbatch }}
{% endfor %}
#SBATCH --time={{ time_limit | sbatch }}
#SBATCH --output={{ output | sbatch }}
#SBATCH --open-mode=append
#SBATCH --requeue
# To the tasks of steps, not to this script; Slurm may send it up to a minute early.
#SBATCH --signal=USR1@{{ grace_s }}
# The rest of the submitting shell's variables, secrets among them, stay where they are.
#SBATCH --export={{ export | sbatch }}
set -u
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

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((10000 + SLURM_JOB_ID % 20000))

# One task per node. It ends by itself when its peers are gone, so that a node that saves a little
# longer than another one may do so.
srun --export=ALL --kill-on-bad-exit=0 --wait=0 --cpu-bind=none{% if profile.slurm.cpus %} --cpus-per-task={{ profile.slurm.cpus }}{% endif %} \
  {{ in_container + command }} \
  --rendezvous "$address:$port" \
  -- {{ words }}
code=$?

# 75: saved, and wants to go on. Slurm itself requeues jobs whose node fails and preempted ones;
# scancel ends this script at once, so that a cancelled job stays cancelled.
if ((code == 75 && ${SLURM_RESTART_COUNT:-0} < {{ profile.max_requeues }})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
