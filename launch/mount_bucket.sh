#!/usr/bin/env bash
# A bucket of Google Cloud Storage as the folder /mnt/BUCKET of this host, which has gcsfuse and
# whose account may write there.
#
#   mount_bucket.sh BUCKET    does nothing where it is mounted
#
# The limit is of files in a folder that is renamed, as a checkpoint is when it is whole.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "$#" -eq 1 ] || die "usage: mount_bucket.sh BUCKET"
bucket="${1#gs://}"
case "$bucket" in "" | */*) die "$1 is no name of a bucket" ;; esac
folder="/mnt/$bucket"
if mountpoint --quiet "$folder"; then exit 0; fi
[ -n "$DRY_RUN" ] || command -v gcsfuse >/dev/null \
  || die "no gcsfuse on $(hostname): put it into the image"
run sudo mkdir -p "$folder"
run sudo chown "$(id -u)" "$folder"
run gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$bucket" "$folder"
