"""Print the number of GPUs that torch can use here, for Ray, which would count those of the driver."""

from __future__ import annotations

import sys

from mnist_pipe import hardware
from mnist_pipe.errors import message_and_code


def main() -> int:
    """Return 0 and print the number; if torch cannot use the GPUs, print one line and return 3."""
    try:
        found = hardware.check_gpus()
    except Exception as error:
        message, code = message_and_code(error)
        print(message, file=sys.stderr)
        return code
    number = hardware.num_gpus()
    if hardware.driver_cuda() and not number:
        print(f"gpu: {found}", file=sys.stderr)
    print(number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
