#!/bin/sh
# Runs COMMAND on a Ray cluster of two nodes with network stacks of their own: a head without CPUs and a worker with two,
# in two network namespaces that one virtual cable joins. Needs root and iproute2.
#
#     sh tests/cluster/netns_two_nodes.sh FOLDER COMMAND...
#
# FOLDER (a short path: sockets lie in it) gets the nodes' folders and logs. COMMAND runs in the head's namespace; in its
# environment RAY_API_SERVER_ADDRESS is where `ray job submit` sends jobs, RS_WORKER the worker's namespace, in which
# `sh -c "$RS_WORKER_SCRIPT"` starts the worker again. Exit status: the command's, or 77 where namespaces are not permitted.
# RAY (default: ray) is the `ray` to use. HIDE names a folder of which every start of the worker has an empty one of its
# own: what the nodes write there, they do not share.
set -u
folder=$1
shift
ray=${RAY:-ray}
head=rs-head-$$ worker=rs-worker-$$
head_ip=10.77.0.1 worker_ip=10.77.0.2
head_pid="" worker_pid=""

stop() {
    [ -n "$worker_pid" ] && kill "$worker_pid" "$head_pid" 2>/dev/null
    for _ in $(seq 20); do
        [ -z "$(ip netns pids "$head" 2>/dev/null)$(ip netns pids "$worker" 2>/dev/null)" ] && break
        sleep 0.5
    done
    for name in "$worker" "$head"; do
        for pid in $(ip netns pids "$name" 2>/dev/null); do
            kill -9 "$pid" 2>/dev/null
        done
        ip netns del "$name" 2>/dev/null
    done
}
trap stop EXIT
trap 'exit 130' INT TERM

ip netns add "$head" 2>/dev/null && ip netns add "$worker" 2>/dev/null || {
    echo "network namespaces are not permitted here" >&2
    exit 77
}
ip link add veth0 netns "$head" type veth peer name veth0 netns "$worker" || exit 77
for side in "$head $head_ip" "$worker $worker_ip"; do
    set -- "$side" "$@"
    name=${side% *} address=${side#* }
    shift
    ip -n "$name" link set lo up
    ip -n "$name" address add "$address/24" dev veth0
    ip -n "$name" link set veth0 up
done

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_API_SERVER_ADDRESS="http://$head_ip:8265"
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
export RAY_AUTH_TOKEN
# A busy machine takes longer to start a node than Ray waits by itself.
export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-300}
unset RAY_ADDRESS
HIDE=${HIDE:-}
mkdir -p "$folder"

ip netns exec "$head" "$ray" start --block --head --node-ip-address=$head_ip --port=6379 --num-cpus=0 \
    --dashboard-host=$head_ip --dashboard-port=8265 --object-store-memory=150000000 --temp-dir="$folder/head" \
    --disable-usage-stats >"$folder/head.log" 2>&1 &
head_pid=$!
RS_WORKER=$worker RS_WORKER_SCRIPT=$(cat <<END
[ -z "$HIDE" ] || mount -t tmpfs tmpfs "$HIDE" || exit 77
mkdir -p "$folder"
for _ in \$(seq 60); do '$ray' health-check --address=$head_ip:6379 2>/dev/null && break; sleep 1; done
for _ in 1 2 3; do # the head may answer before it is ready
    '$ray' start --block --address=$head_ip:6379 --node-ip-address=$worker_ip --num-cpus=2 \
        --object-store-memory=150000000 --temp-dir='$folder/worker' --disable-usage-stats && break
    sleep 5
done
END
)
export RS_WORKER RS_WORKER_SCRIPT
ip netns exec "$worker" sh -c "$RS_WORKER_SCRIPT" >"$folder/worker.log" 2>&1 &
worker_pid=$!
for _ in $(seq 60); do
    nodes=$(ip netns exec "$head" "$ray" list nodes --filter state=ALIVE 2>/dev/null | grep -c ALIVE)
    [ "$nodes" = 2 ] && break
    kill -0 "$head_pid" "$worker_pid" 2>/dev/null || break
    sleep 1
done
ip netns exec "$head" "$@"
