"""What the two GPU backends share: how a call is divided into tiles and panels."""
