"""Holds memory of the first GPU it sees and keeps it busy, through the driver alone (libcuda).

    hold.py                                 prints what it sees, as JSON
    hold.py --memory 1024 --seconds 10      prints it when it holds so many MiB, and computes for so long
    hold.py --memory 1024 --seconds 600 --leave   leaves that to a process that outlives this one
"""

import argparse
import ctypes
import glob
import json
import os
import subprocess
import sys
import time

MIB = 1 << 20
NO_DEVICE = 100
# Spins for so many clocks of the device.
KERNEL = b"""
.version 6.0
.target sm_60
.address_size 64
.visible .entry spin(.param .u64 clocks)
{
  .reg .pred %p;
  .reg .u64 %limit, %start, %now;
  ld.param.u64 %limit, [clocks];
  mov.u64 %start, %clock64;
AGAIN:
  mov.u64 %now, %clock64;
  sub.u64 %now, %now, %start;
  setp.lt.u64 %p, %now, %limit;
  @%p bra AGAIN;
  ret;
}
\0"""
CLOCKS = 200_000_000


class Driver:
    """The CUDA driver; without a device it answers that it sees none."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        status = self.cuda.cuInit(0)
        self.none = status == NO_DEVICE
        if not self.none:
            check("cuInit", status)

    def call(self, name, *arguments):
        check(name, getattr(self.cuda, name)(*arguments))

    def uuids(self):
        if self.none:
            return []
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return [self.uuid(index) for index in range(count.value)]

    def uuid(self, index):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        self.call("cuDeviceGetUuid", raw, device)
        digits = bytes(raw).hex()
        return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def hold(self, memory_mib):
        """Makes a context on the first device and fills memory of it."""
        self.context, place = ctypes.c_void_p(), ctypes.c_uint64()
        size = ctypes.c_size_t(memory_mib * MIB)
        self.call("cuCtxCreate_v2", ctypes.byref(self.context), 0, 0)
        self.call("cuMemAlloc_v2", ctypes.byref(place), size)
        self.call("cuMemsetD8_v2", place, ctypes.c_ubyte(1), size)
        self.call("cuCtxSynchronize")

    def spin(self, seconds):
        """Keeps the device busy."""
        if seconds <= 0:
            return
        module, function, clocks = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64(CLOCKS)
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(KERNEL))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"spin"))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(clocks))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
            self.call("cuCtxSynchronize")


def check(name, status):
    if status != 0:
        sys.exit(f"hold.py: {name}: CUDA error {status}")


def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--memory", type=int, default=0)
    options.add_argument("--seconds", type=float, default=0)
    options.add_argument("--leave", action="store_true")
    chosen = options.parse_args()
    driver = Driver()
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    seen = {
        "variable": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "uuids": driver.uuids(),
        "opened": [node for node in nodes if opens(node)],
    }
    if chosen.leave:
        # A context does not outlive fork: another program makes its own.
        words = [sys.executable, __file__, "--memory", str(chosen.memory), "--seconds", str(chosen.seconds)]
        left = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if not left.stdout.readline().startswith("seen:"):
            sys.exit("hold.py: the process that was to be left behind has ended")
    elif chosen.memory:
        driver.hold(chosen.memory)
    print("seen:", json.dumps(seen), flush=True)
    if not chosen.leave:
        driver.spin(chosen.seconds)


main()
