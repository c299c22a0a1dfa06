"""The defenses that ship with robench, installed as `robench_defenses`: one file each."""
