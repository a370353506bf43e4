#!/usr/bin/env bash
# A federation of four processes on this machine: one server, three clients, all on loopback.
#
#     bash docs/trial.sh [DIR [PORT]]
#
# DIR is made, and kept: keys, the run with its report, the clients' homes. Without it all
# lies in a temporary folder, which is removed. The exit code is that of `fedvtc-edge serve`.
# Ctrl-C stops everything.
set -euo pipefail
# Each process gets a group of its own: Ctrl-C reaches this script alone, which then stops
# them in order. Without this they would not notice an interrupt at all.
set -m

if [[ $# -gt 0 ]]; then
    dir=$1 kept=yes
    if [[ -e $dir ]]; then
        echo "trial.sh: $dir exists; choose another folder" >&2
        exit 2
    fi
    mkdir -p -- "$dir"
else
    dir=$(mktemp -d) kept=no
fi
port=${2:-8000}
running=()

stop() {
    local status=$?
    trap - EXIT INT TERM
    for process in ${running[@]+"${running[@]}"}; do
        kill -INT "$process" 2>/dev/null || true # it may have ended
    done
    wait || true
    [[ $kept == yes ]] || rm -rf -- "$dir"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd -- "$dir"
cat >config.toml <<'TOML'
[data]
limit = 600
test_limit = 200

[clients]
count = 3

[method]
rounds = 3

[training]
decoder_steps = 10
finetune_from = 2
finetune_steps = 10
finetune_last = 100

[server]
deadline_s = 120
TOML

echo "== keys of all parties, in $dir/keys"
fedvtc-edge keys trial keys --clients 3

echo "== a server and three clients; what clients say is in $dir/client-0?.log"
fedvtc-edge serve config.toml --keys keys/server --port "$port" --out run &
server=$!
running+=("$server")
clients=()
for name in client-00 client-01 client-02; do
    fedvtc-edge join "localhost:$port" --keys "keys/$name" --home "homes/$name" --wait 60 \
        --no-privacy \
        >"$name.log" 2>&1 &
    clients+=("$!")
    running+=("$!")
done

# A client that cannot take part would be waited for: its end is looked for, too.
while kill -0 "$server" 2>/dev/null; do
    for index in 0 1 2; do
        if ! kill -0 "${clients[index]}" 2>/dev/null && ! wait "${clients[index]}"; then
            kill -0 "$server" 2>/dev/null || break # it ended first, and has said why
            echo "trial.sh: client-0$index has ended:" >&2
            cat "client-0$index.log" >&2
            exit 1
        fi
    done
    sleep 1
done
status=0
wait "$server" || status=$?

if [[ $status -eq 0 ]]; then
    wait "${clients[@]}"
    for name in client-00 client-01 client-02; do
        echo "== $name"
        cat "$name.log"
    done
    echo "== the report: $dir/run/report.html, the clients' networks: $dir/homes"
    [[ $kept == yes ]] || echo "== removed now; give a folder to keep it: bash docs/trial.sh DIR"
fi
exit "$status"
