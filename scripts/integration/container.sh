#!/usr/bin/env bash
# The steps of the Containerfile without a container engine: a bare Debian 12 (mmdebstrap), the build by the same script,
# then, without a network, on a read-only root, as the image's user without rights: demo, a reconstruction, and the app
# with its health check. For root on Linux.
#
#   FEWVIEW_CONTAINER_WORK   where the root lives (default: a temporary folder; 2.0 GB)
#   FEWVIEW_CONTAINER_KEEP   not empty: a root that was built stays, and is used again
#   FEWVIEW_CONTAINER_BINDS  folders and files of this machine that pip needs while the root is built, such as its
#                            configuration and wheels, separated by colons; mounted read-only, and gone when it runs
#
# Variables PIP_* are handed to the build.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT"

[ "$(id -u)" = 0 ] || fail "mounts and chroot need root"
for program in mmdebstrap unshare setpriv ip; do
    command -v $program >/dev/null || fail "no $program; on Debian: apt-get install mmdebstrap util-linux iproute2"
done
work="${FEWVIEW_CONTAINER_WORK:-$(mktemp -d)}"
root="$work/root"
mkdir -p "$work"
cleanup() { [ -n "${FEWVIEW_CONTAINER_KEEP:-}" ] || rm -rf --one-file-system "$work"; }
trap cleanup EXIT
began=$SECONDS
step() { echo "== $* ($((SECONDS - began)) s)"; }

# What the Containerfile says, one instruction a line.
line() { sed -n "s/^$1 //p" Containerfile; }
run="$(line RUN)"
build="${run##* /src/}"
[ "$(wc -l <<<"$run")" = 1 ] && [ -f "$build" ] || fail "the Containerfile runs more than one script: $run"
mapfile -t environment < <(line ENV)
user="$(line USER)"
words() { "${PYTHON:-python3}" -c 'import json, sys; print("\n".join(json.loads(sys.argv[1])))' "$1"; }
mapfile -t entry < <(words "$(line ENTRYPOINT)")
mapfile -t serve < <(words "$(line CMD)")
mapfile -t health < <(words "$(line HEALTHCHECK | sed 's/.*CMD //')")

if [ ! -e "$root/opt/fewview-ct/sbom.json" ]; then
    step "bare Debian 12"
    rm -rf --one-file-system "$root"
    mmdebstrap --quiet --variant=minbase bookworm "$root"
    step "build: $build"
    mkdir "$root/src"
    git ls-files -z --cached --others --exclude-standard -- $(sed -n 's/^!//p' .dockerignore) |
        tar --null --files-from=- -cf - | tar -xf - -C "$root/src"
    # Mounts end with the namespace.
    unshare --mount --pid --fork bash -euo pipefail -s "$root" "$build" <<'EOF'
root="$1" build="$2"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
IFS=: read -ra binds <<<"${FEWVIEW_CONTAINER_BINDS:-}:/etc/resolv.conf"
for path in "${binds[@]}"; do
    [ -n "$path" ] || continue
    if [ -d "$path" ]; then mkdir -p "$root$path"; elif [ ! -e "$root$path" ]; then install -D /dev/null "$root$path"; fi
    mount --bind -o ro "$path" "$root$path"
done
mapfile -t pip < <(env | grep '^PIP_' || true)
chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "${pip[@]}" bash "/src/$build" </dev/null
EOF
    rm -rf "$root/src"
fi
du -sm "$root" | sed 's/\t.*/ MB/'
grep -c '"bom-ref"' "$root/opt/fewview-ct/sbom.json" | sed 's/$/ components in the bill of materials/'
grep -q '"name": "torch"' "$root/opt/fewview-ct/sbom.json" || fail "the bill of materials does not know torch"
if grep -q '"name": "nvidia-' "$root/opt/fewview-ct/sbom.json"; then fail "the CPU variant has packages of CUDA"; fi

step "run: no network, read-only root, user $user, no capabilities"
cat >"$work/inside.sh" <<'EOF'
set -euo pipefail
refused() { if "$@" 2>/tmp/refused.log; then echo "error: this should have failed: $*" >&2; exit 1; fi; }
[ "$(id -u)" != 0 ]
grep -q '^CapBnd:\s*0*$' /proc/self/status
grep -q '^NoNewPrivs:\s*1$' /proc/self/status
refused touch /x /opt/fewview-ct/x
refused python3 -c 'import socket; socket.create_connection(("192.0.2.1", 443), 3)'
cd "$WORKDIR"
"${entry[@]}" doctor
"${entry[@]}" demo --output demo
"${entry[@]}" reconstruct demo/radiographs.nii.gz --geometry demo/radiographs.json --output result
test -s result/ct.nii.gz
test -s result/report.html
refused "${entry[@]}" "${serve[@]}"
grep -q FEWVIEW_APP_TOKEN /tmp/refused.log
refused "${health[@]}"
FEWVIEW_APP_TOKEN=only-for-this-test-of-the-app "${entry[@]}" "${serve[@]}" &
app=$!
for _ in $(seq 60); do if "${health[@]}" 2>/dev/null; then break; fi; sleep 1; done
"${health[@]}"
echo "the app is healthy"
kill -TERM $app
wait $app || true
refused "${health[@]}"
EOF
{ declare -p entry serve health; echo "WORKDIR=$(line WORKDIR)"; cat "$work/inside.sh"; } >"$work/whole.sh"
unshare --mount --pid --net --ipc --uts --fork bash -euo pipefail -s \
    "$root" "$work/whole.sh" "$user" "${environment[@]}" "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" <<'EOF'
root="$1" script="$2" user="$3"
shift 3
ip link set lo up
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o "mode=700,uid=${user%:*},gid=${user#*:}" tmpfs "$root/data"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,bind,ro "$root"
chroot "$root" setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs --inh-caps=-all \
    --bounding-set=-all env -i "$@" bash -c "$(cat "$script")" </dev/null
EOF
step "done"
