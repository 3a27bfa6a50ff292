#!/bin/sh
# Runs pgloader, and records it: load.sh LOADER_ID FILE.load
set -eu

sql() {
    psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run=$(sql -c "SELECT loader.record_execution_start($1)")

status=SUCCESS
pgloader --root-dir "$folder" --summary "$folder/summary.copy" "$2" >"$folder/log" 2>&1 || status=FAILED
cat "$folder/log"
# pgloader ends with 0 even where it has rejected every row. Its summary has what it read, what it loaded
# and how many errors it met, a line for each table; those have their names in quotes.
touch "$folder/summary.copy"
loaded=$(awk -F '\t' '/^"/ { count += $3 } END { print count + 0 }' "$folder/summary.copy")
[ "$(awk -F '\t' '/^"/ { count += $4 } END { print count + 0 }' "$folder/summary.copy")" = 0 ] || status=FAILED
error=$(sed -n '/ ERROR \|^An unhandled error/,$p' "$folder/log" | head -n 3)

sql -v run="$run" -v status="$status" -v loaded="$loaded" -v error="$error" <<'SQL'
SELECT loader.record_execution_end(:run, :'status', :loaded, NULLIF(:'error', ''));
SQL
[ "$status" = SUCCESS ]
