#!/bin/sh
# Writes katas for a class, without answers: scripts/handout.sh --help
exec "$(dirname -- "$0")/kata.sh" handout "$@"
