#!/bin/sh
# A client of Odoshi with nothing but curl, written from the interface's description alone.
#
# usage: client.sh URL    (an admin's token is in ODOSHI_TOKEN)
#
# It enrolls an agent, submits an action for it, takes the command as that agent, reports its result, and reads what came
# of it as JSON, CSV and server-sent events. It ends with 0 when everything was as described.
set -eu
url=$1
name="sh-$$-$(date +%s)"

fail() { echo "client.sh: $*" >&2; exit 1; }

# call TOKEN METHOD PATH [BODY] [curl's options…]: the answer, or a failure that says why.
call() {
    token=$1 method=$2 path=$3 body=${4-}
    if [ $# -gt 3 ]; then shift 4; else shift 3; fi
    # The token goes in by standard input: arguments can be seen by everybody on the machine.
    printf 'header = "Authorization: Bearer %s"\n' "$token" |
        curl --silent --show-error --fail-with-body --max-time 60 --config - --request "$method" \
            ${body:+--header 'Content-Type: application/json' --data "$body"} "$@" "$url$path" ||
        fail "$method $path"
}

# value KEY: the first string of this key in the JSON that comes in.
value() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" | head -n 1; }

has() { case $1 in *"$2"*) ;; *) fail "no «$2» in: $1" ;; esac; }

admin=$ODOSHI_TOKEN
enroll=$(call "$admin" POST /v1/tokens '{"role":"enroll"}' | value token)
[ -n "$enroll" ] || fail "no token to enroll with"
own=$(call "$enroll" POST /v1/agent/enroll "{\"name\":\"$name\",\"labels\":{\"by\":\"$name\"},\"facts\":{},\"version\":\"sh\"}" | value token)
[ -n "$own" ] || fail "no token of its own"

action=$(call "$admin" POST /v1/actions "{\"name\":\"from a shell\",\"target\":\"labels.by = '$name'\",
    \"operations\":[{\"module\":\"ping\",\"parameters\":{}}]}" | value id)
[ -n "$action" ] || fail "no action"

due=$(call "$own" GET "/v1/agent/commands?wait=30s")
has "$due" "\"action\":\"$action\""
run="{\"action\":\"$action\",\"run\":1"
has "$(call "$own" POST /v1/agent/received "{\"commands\":[$run}]}")" "\"commands\":[$run}]"
has "$(call "$admin" GET "/v1/actions/$action")" '"sent":1'
stored=$(call "$own" POST /v1/agent/results "{\"results\":[$run,\"status\":\"succeeded\",
    \"results\":[{\"module\":\"ping\",\"ok\":true,\"output\":{\"from\":\"curl\"}}]}]}")
has "$stored" "\"commands\":[$run}]"

# Ends by itself: the action is over.
events=$(call "$admin" GET "/v1/actions/$action/events" "" --no-buffer)
has "$events" "event: end"
has "$events" '"status":"completed"'
has "$(call "$admin" GET "/v1/actions/$action/commands")" '"output":{"from":"curl"}'
rows=$(call "$admin" GET "/v1/actions/$action/commands" "" --header 'Accept: text/csv')
has "$rows" "agent,status,attempts,runs,due_at,sent_at,started_at,finished_at,results,error"
has "$rows" "$name,succeeded,1,1,"
echo "everything was as described"
