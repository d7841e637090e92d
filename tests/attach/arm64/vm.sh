#!/bin/bash
# Run the attach tests in an emulated arm64 Linux: Debian 12 with its kernel and Python 3.11, torch for CPUs, one processor.
#   vm.sh make                       the disk: once, 4 GB, some five minutes; as root
#   vm.sh run [CPU] [TESTS...]       boot, run the tests (all that matter here without any), show what they say, end
# CPU as qemu names it: max (also without a word: SVE, pointer authentication, branch targets), neoverse-n1 (none of these),
# cortex-a72 (torch's wheel does not run on it: the tests without torch).
# A test takes twenty times as long as on the machine itself. Debian's debootstrap, qemu-system-arm, e2fsprogs and cpio must be there.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/../../.." && pwd)
folder=${GPUWATCH_ARM64_FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/gpuwatch-arm64}
packages=python3,libpython3.11,busybox-static,procps,strace,gdb,libstdc++6,libgomp1,linux-image-cloud-arm64
# 2.10 is the last torch whose wheel for aarch64 needs no CUDA.
wheels="torch==2.10.0 numpy<2.4 filelock typing_extensions sympy mpmath networkx==3.4.2 jinja2 markupsafe fsspec setuptools<81
  click google-crc32c msgspec nvidia-ml-py tensorboard absl-py grpcio markdown packaging pillow protobuf six werkzeug
  tensorboard-data-server pytest iniconfig pluggy pygments pytest-timeout"

make_root() {
  debootstrap --foreign --arch=arm64 --variant=minbase --include=$packages bookworm "$folder/root" ${GPUWATCH_DEBIAN_MIRROR:-}
  for package in "$folder"/root/var/cache/apt/archives/*.deb; do # unpacked is enough: nothing in it has to be configured
    dpkg-deb -x "$package" "$folder/root"
  done
  rm -rf "$folder"/root/debootstrap "$folder"/root/var/cache/apt/archives/*.deb
  # shellcheck disable=SC2086  # a list of words
  python3 -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform any --target "$folder/root/site" $wheels
  echo root:x:0:0:root:/root:/bin/sh > "$folder/root/etc/passwd"
  install -D /dev/stdin "$folder/root/usr/local/lib/python3.11/dist-packages/site.pth" <<< /site
  cat > "$folder/root/init" <<'INIT'
#!/bin/sh
export PATH=/usr/local/bin:/usr/bin:/bin:/sbin:/usr/sbin HOME=/root TERM=dumb
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /checkout
mount -t tmpfs tmpfs /dev/shm
busybox ip link set lo up
ldconfig
tar xf /dev/vdb -C /checkout
cd /checkout
sh tests/attach/arm64/inside.sh
busybox poweroff -f
INIT
  chmod +x "$folder/root/init"
}

make_initrd() { # Debian's kernel has the disk's driver as a module
  local drivers="virtio/virtio virtio/virtio_ring virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev virtio/virtio_pci block/virtio_blk"
  rm -rf "$folder/initrd"
  mkdir -p "$folder"/initrd/{bin,dev,proc,sys,new}
  cp "$folder/root/bin/busybox" "$folder/initrd/bin/"
  for driver in $drivers; do
    cp "$folder"/root/lib/modules/*/kernel/drivers/"$driver".ko "$folder/initrd/"
  done
  cat > "$folder/initrd/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for driver in $drivers; do /bin/busybox insmod /\${driver##*/}.ko; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.2; done
/bin/busybox mount -t ext4 /dev/vda /new
for place in dev proc sys; do /bin/busybox mount --move /\$place /new/\$place; done
exec /bin/busybox switch_root /new /init
INIT
  chmod +x "$folder/initrd/init"
  (cd "$folder/initrd" && find . | cpio --quiet -o -H newc | gzip > ../initrd.gz)
}

make() {
  mkdir -p "$folder"
  rm -rf "$folder/root" "$folder/disk"
  make_root
  make_initrd
  cp "$folder"/root/boot/vmlinuz-* "$folder/kernel"
  mke2fs -q -t ext4 -d "$folder/root" "$folder/disk" 4G
  rm -rf "$folder/root" "$folder/initrd"
}

run() {
  local cpu=${1:-max} features=
  shift || true
  [ "$cpu" = max ] && features=,pauth-impdef=on # the architecture's own cipher takes most of the time otherwise
  local work
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  printf '%s\n' "$*" > "$work/tests-to-run"
  tar -cf "$work/checkout" --exclude=__pycache__ --exclude=.git -C "$checkout" gpuwatch hooks tests pyproject.toml -C "$work" tests-to-run
  truncate -s %1M "$work/checkout"
  nice -n 15 qemu-system-aarch64 -M virt,gic-version=3 -cpu "$cpu$features" -smp 1 -m 2048 -nographic -nodefaults -no-reboot \
    -serial stdio -kernel "$folder/kernel" -initrd "$folder/initrd.gz" -append "console=ttyAMA0 rdinit=/init quiet panic=-1" \
    -drive "file=$folder/disk,format=raw,if=virtio,snapshot=on" -drive "file=$work/checkout,format=raw,if=virtio,readonly=on" \
    < /dev/null | tee "$work/said"
  grep -q "^all tests in it: 0" "$work/said"
}

"${1:?make or run}" "${@:2}"
