"""The mount server as a test's machine and guest have it: told of them by its environment."""

import json
import os
import sys

from lima_kernels import mount_server, paths

for name, value in json.loads(os.environ["LK_TEST_PATHS"]).items():
    setattr(paths, name, value)
# Tests do not wait for what is looked at every few seconds.
mount_server.LOOK_INTERVAL = 0.5
sys.exit(mount_server.main(sys.argv[1]))
