"""The attacks that ship with robench, installed as `robench_attacks`: one file each."""
