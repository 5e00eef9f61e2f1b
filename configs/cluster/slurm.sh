#!/bin/bash
# A raylora sweep on a Slurm allocation: sbatch configs/cluster/slurm.sh SWEEP.yaml OUTPUT [KEY=VALUE ...]
# Ray takes exactly the CPUs and GPUs that Slurm gave, on ports and in a folder of this job's own. Requeued after a preemption (or by hand)
# the same command goes on where the ledger in OUTPUT ends. OUTPUT must be seen by the first node at every start; data need not be shared.
#SBATCH --job-name=raylora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@90
#   GPUs: #SBATCH --gpus-per-node=1   (and placement.gpus_per_client in the sweep's base experiment)
set -euo pipefail

sweep=${1:?expected a sweep file}
output=${2:?expected an output folder}
shift 2

# Another user's or job's Ray on the same node has another port; from 32768 on they are the kernel's to give away.
port=$((20000 + (UID * 131 + SLURM_JOB_ID) % 12000))
temp="/tmp/rl-$UID-$SLURM_JOB_ID" # Ray's sockets lie below it: a long path breaks them
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # a step does not inherit it (since Slurm 22.05)

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<<"$nodes")
address=$(srun --nodes=1 --ntasks=1 -w "$head" python -c "import ray; print(ray.util.get_node_ip_address())")
given=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

stop() { # the nodes first, so that nothing of this job is left
    kill "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
    srun --overlap --nodes="$SLURM_NNODES" --ntasks-per-node=1 rm -rf "$temp" || true
}
started=()
trap stop EXIT

running=
preempted() { # Slurm warns 90 s before it takes the nodes away
    [[ -z $running ]] || kill -TERM "$running" 2>/dev/null || true
    [[ -z $running ]] || wait "$running" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap preempted TERM

srun --nodes=1 --ntasks=1 --overlap -w "$head" ray start --head --port="$port" --temp-dir="$temp" --include-dashboard=false "${given[@]}" &
started+=($!)
for node in $(tail -n +2 <<<"$nodes"); do
    srun --nodes=1 --ntasks=1 --overlap -w "$node" \
        bash -c 'for i in $(seq 60); do "$@" && exit; sleep 2; done' ray ray start --address="$address:$port" "${given[@]}" &
    started+=($!)
done

python - "$address:$port" "$SLURM_NNODES" <<'PYTHON' & # until all nodes are there; beside us, or a signal would wait for it
import sys, time
import ray

until = time.monotonic() + 300
while time.monotonic() < until:
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
        if len([node for node in ray.nodes() if node["Alive"]]) >= int(sys.argv[2]):
            sys.exit(0)
        ray.shutdown()
    except ConnectionError:
        pass
    time.sleep(2)
sys.exit("the Ray nodes did not come up within five minutes")
PYTHON
running=$!
wait "$running"

raylora sweep "$sweep" "$@" --output "$output" --address "$address:$port" &
running=$!
wait "$running"
