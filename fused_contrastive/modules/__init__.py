"""The modules of the force family. The other losses have theirs in losses/, beside the function."""
