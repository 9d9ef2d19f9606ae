#!/usr/bin/env bash
# Every call of the API with curl, in the order in which a client makes them. Needs bash and curl, nothing else.
#
#   SLUICEGATE_KEY=sg_… examples/curl/tour.sh [check|stream|chat|rules …]
#
# SLUICEGATE_URL is http://127.0.0.1:8000 unless it says otherwise. Without arguments: all four parts.
set -euo pipefail

URL=${SLUICEGATE_URL:-http://127.0.0.1:8000}
KEY=${SLUICEGATE_KEY:?set it to a key: manage.py create_api_key example --scope check --scope stream --scope rules}

# Of several tries only the last one's answer stays in a file; on standard output curl leaves those before it as well.
ANSWER=$(mktemp)
trap 'rm -f "$ANSWER"' EXIT

# A call: path, JSON body, more curl arguments. Where nobody listens, time is up or the answer is a 5xx or a 429, curl
# sends it again by itself, and obeys Retry-After. Where the connection is cut it does not: was_cut says when to do that
# here. The API takes an update or a finish that comes again for the same call, and a start that has an Idempotency-Key.
# A check or a chat that comes again is a new one, judged, counted and recorded once more: one that was cut is left.
call() {
  local path=$1 body=$2 tries=5 status
  shift 2
  while
    status=0
    : >"$ANSWER"
    curl --silent --show-error --fail-with-body --retry 5 --retry-connrefused --max-time 60 --output "$ANSWER" \
      --header "Authorization: Bearer $KEY" --header 'Content-Type: application/json' "$@" \
      --data "$body" "$URL$path" || status=$?
    was_cut "$path" "$status" && ((--tries))
  do sleep 1; done
  cat "$ANSWER"
  echo
  return "$status"
}

# A call that may come again got no answer, or part of one: what curl ends with then.
was_cut() { [[ $1 == /v1/stream/* && " 18 52 55 56 " == *" $2 "* ]]; }

# Without a body: a GET.
get() {
  local path=$1
  shift
  curl --silent --show-error --fail-with-body --max-time 120 --header "Authorization: Bearer $KEY" "$@" "$URL$path"
  echo
}

# A text field of an answer. In a script of your own, use jq.
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

check() {
  echo '# One text, checked as a whole'
  call /v1/check '{"text": "My number is 536-22-8145.", "kind": "response", "accepts": ["redact"]}'
}

stream() {
  echo '# start: the first delta has seq 1; with an Idempotency-Key a start that is sent twice is one session'
  local started session
  started=$(call /v1/stream/start '{"delta": "My number is 536-"}' --header "Idempotency-Key: tour-$$-$RANDOM-$RANDOM")
  echo "$started"
  session=$(field session_id <<<"$started")

  echo '# update: only what is new; "released" is what may be shown now. "chunks", in every call that has a delta, says how'
  echo '# many of your model are in it: then the audit page shows what a check of each chunk would have cost'
  call /v1/stream/update '{"session_id": "'"$session"'", "seq": 2, "delta": "22-8145, and it "}'

  echo '# the same call again: the same answer, nothing is applied twice'
  call /v1/stream/update '{"session_id": "'"$session"'", "seq": 2, "delta": "22-8145, and it "}'

  echo '# status: which seq comes next, what is held, what was counted'
  get "/v1/stream/status?session_id=$session"

  echo '# finish, with the last delta'
  call /v1/stream/finish '{"session_id": "'"$session"'", "seq": 3, "delta": "is mine."}'

  echo '# gzip in both directions'
  printf '%s' '{"delta": "A long text is worth it."}' | gzip --stdout |
    curl --silent --show-error --fail-with-body --compressed --max-time 60 --header "Authorization: Bearer $KEY" \
      --header 'Content-Type: application/json' --header 'Content-Encoding: gzip' --data-binary @- "$URL/v1/stream/start"
  echo
}

chat() {
  echo '# The server talks to the model; the answer says where its events are'
  local began session token
  began=$(call /v1/chat '{"prompt": "What is on file?", "scenario": "pii"}')
  echo "$began"
  session=$(field session_id <<<"$began")
  token=$(field stream_token <<<"$began")

  echo '# Its events as they come (--no-buffer), until the session is over'
  get "/v1/stream/events?session_id=$session" --no-buffer

  echo '# A reader that lost its connection after event 5 reads on; in a browser, the token stands for the key'
  curl --silent --show-error --fail-with-body --no-buffer --max-time 120 --header 'Last-Event-ID: 5' \
    "$URL/v1/stream/events?session_id=$session&token=$token"
  echo
}

rules() {
  echo '# Signed rules for clients; believe only "bundle", and only when it verifies with the root that you pinned'
  get "/v1/rules?policy=demo"

  echo '# The public keys, which need no key to read'
  curl --silent --show-error --fail-with-body --max-time 60 "$URL/.well-known/jwks.json"
  echo
}

(($#)) || set -- check stream chat rules
for part in "$@"; do
  case $part in
  check | stream | chat | rules) "$part" ;;
  *)
    echo "There is no part “$part”: check, stream, chat, rules." >&2
    exit 2
    ;;
  esac
done
