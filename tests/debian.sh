#!/bin/sh
# Makes the root file system of a new minimal Debian with some packages more.
#
#   tests/debian.sh FOLDER PACKAGE,PACKAGE [RELEASE]
#
# The packages come from the mirror that apt uses on this machine; the release is this machine's, if
# none is named. Needs root and debootstrap.
set -eu
PATH=$PATH:/usr/sbin:/sbin

if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
command -v debootstrap >/dev/null || {
    echo "tests/debian.sh: no debootstrap: apt-get install debootstrap" >&2
    exit 1
}
here=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $here" 'Created-By: Packages' |
    head -n 1)
exec debootstrap --variant=minbase --include="$2" "${3:-$here}" "$1" "$mirror" >&2
