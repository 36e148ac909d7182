"""What holds for all tests."""

import os

# gcsfs looks at it when it is imported, and asks emulators for what they lack unless it says no
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
