#!/usr/bin/env bash
# Mount a bucket of Google Cloud Storage at /mnt/BUCKET of this host. The host needs gcsfuse and an
# account with write access.
#
#   mount_bucket.sh BUCKET    does nothing if it is mounted
#
# --rename-dir-limit: maximum number of files of a folder that is renamed, as checkpoints are.
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
