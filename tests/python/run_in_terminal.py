"""Runs a command in a terminal of its own, and prints as JSON what became of the terminal.

Usage: run_in_terminal.py KEYS_AFTER KEYS COMMAND... KEYS is typed as soon as the output holds KEYS_AFTER ('' types nothing).
A key "kill" sends SIGTERM instead.
"""

import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
import time

after, keys, command = sys.argv[1], sys.argv[2], sys.argv[3:]
child, master = pty.fork()
if child == 0:
    os.execvp(command[0], command)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
output = b""
typed = not after
raw_while_running = False
end = time.monotonic() + 120
while time.monotonic() < end:
    try:
        part = os.read(master, 65536)
    except OSError:
        break
    if not part:
        break
    output += part
    raw_while_running |= not termios.tcgetattr(master)[3] & termios.ICANON
    if not typed and after.encode() in output:
        typed = True
        if keys == "kill":
            os.kill(child, signal.SIGTERM)
        else:
            os.write(master, keys.encode().decode("unicode_escape").encode())
restored = bool(termios.tcgetattr(master)[3] & termios.ICANON)
_, status = os.waitpid(child, 0)
print(json.dumps({
    "output": output.decode(errors="replace"),
    "status": os.waitstatus_to_exitcode(status),
    "raw_while_running": raw_while_running,
    "restored": restored,
}))
