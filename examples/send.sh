#!/usr/bin/env bash
# Sends one usage event through the agent's local HTTP API; exit code 0 means: it is safe on disk.
# Needs curl. A repeat carries the same external_id, so it bills nothing twice.
set -euo pipefail
socket=${POLAR_AGENT_API_SOCKET_PATH:-/run/polar-agent/api.sock}
id=$(cat /proc/sys/kernel/random/uuid)
body='{"events":[{"name":"ai_usage","external_customer_id":"'${1:-cus_1}'","external_id":"'$id'","metadata":{"tokens":77}}]}'

curl --silent --show-error --fail-with-body --unix-socket "$socket" \
    --retry 5 --retry-connrefused --retry-delay 1 --max-time 30 \
    --header 'Content-Type: application/json' --data "$body" http://agent/v1/events/ingest
