#!/usr/bin/env bash
# Runs a program on a GPU that is not there, so that the driver compiles its kernels, and prints what it made of them.
#   run.sh PROGRAM [ARG ...]
# Environment, see README.md: what the driver needs to be content without a device (RADV_FORCE_FAMILY=navi31), and
#   VK_DRIVER_FILES  the driver's manifest
#   SHIM             library that the program starts with, for drivers that ask the kernel
#   MESA_ROOT        a Debian of its own that the driver was unpacked in, with its C library and Vulkan loader; else the system's
#   OUT              folder for report.tsv and the machine code [a temporary one]
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
program=$(command -v "$1") || { echo "run.sh: $1: not found" >&2; exit 2; }
shift
out=${OUT:-$(mktemp -d)}
mkdir -p "$out/code" "$out/lib"
rm -rf "$out/cache" "$out"/code/*
: >"$out/report.tsv"
cc -O1 -shared -fPIC -Wl,-soname,libvulkan.so.1 -Wl,-z,nodelete -o "$out/lib/libvulkan.so.1" "$here/null_device.c" -ldl
export NULL_DEVICE_REPORT="$out/report.tsv" NULL_DEVICE_CODE="$out/code" WGPU_DEBUG=1 MESA_SHADER_CACHE_DISABLE=true
export ENGRAFT_CACHE="$out/cache" XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-$out}" NODEVICE_SELECT=1
if [ -n "${MESA_ROOT:-}" ]; then
  libraries=$MESA_ROOT/usr/lib/x86_64-linux-gnu
  export NULL_DEVICE_LOADER=$libraries/libvulkan.so.1
  starter=("$(find "$MESA_ROOT" -name ld-linux-x86-64.so.2 | head -n 1)" --library-path "$out/lib:$libraries")
  # the shim is for the program alone
  if [ -n "${SHIM:-}" ]; then starter+=(--preload "$SHIM"); fi
else
  NULL_DEVICE_LOADER=$(ldconfig -p | sed -n 's/.*libvulkan\.so\.1 .*=> //p' | head -n 1)
  export NULL_DEVICE_LOADER
  starter=(env "LD_LIBRARY_PATH=$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ${SHIM:+"LD_PRELOAD=$SHIM"})
fi
"${starter[@]}" "$program" "$@" >"$out/program.log" 2>&1 || { tail -n 5 "$out/program.log" >&2; echo "run.sh: the program failed: $out/program.log" >&2; }
python3 "$here/report.py" "$out"
