#!/bin/sh
# Stands in for `python3` in `python3 -m pip download ... --dest DIR REQUIREMENT`: copies the wheels of
# ROOT/index/REQUIREMENT, where DIR is ROOT/store/.partial/KEY/pip/wheels, or fails as the files there say.
case "$PIP_REQUIRE_VIRTUALENV $*" in
    "0 -m pip download --no-deps --only-binary :all: "*) ;;
    *) echo "ERROR: unexpected call: $*" >&2; exit 9 ;;
esac
while [ $# -gt 1 ]; do
    [ "$1" = --dest ] && dest=$2
    shift
done
root=${dest%/store/.partial/*}
echo "$1" >> "$root/requests"
index=$root/index/$1
[ -d "$index" ] || { echo "ERROR: No matching distribution found for $1" >&2; exit 1; }
[ -f "$index/stderr" ] && cat "$index/stderr" >&2
[ -f "$index/status" ] && exit "$(cat "$index/status")"
echo "Collecting $1"
for wheel in "$index"/*.whl; do
    [ -f "$wheel" ] && cp "$wheel" "$dest"
done
exit 0
