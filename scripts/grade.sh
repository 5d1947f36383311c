#!/bin/sh
# Grades what a class hands in: scripts/grade.sh --help
exec "$(dirname -- "$0")/kata.sh" grade "$@"
