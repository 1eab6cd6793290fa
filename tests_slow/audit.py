"""Known vulnerabilities of what is installed, by pip-audit (``python -m tests_slow.audit``)."""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    """Audit this environment; exit status 1 for a vulnerability, 2 where nobody could be asked."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
    if "Traceback" in done.stderr or "ConnectionError" in done.stderr or "Connection" in done.stderr:
        last = done.stderr.strip().splitlines()[-1][:200]
        print(f"audit: nobody could be asked about vulnerabilities, nothing was audited ({last})", file=sys.stderr)
        sys.exit(2)
    print(done.stdout, done.stderr, sep="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
