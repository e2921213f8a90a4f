"""Faults: full disks, lost rights, kills, cameras that lie, engines that fail, numbers that are none."""

from __future__ import annotations

from tests.trust import faults_files, faults_kill, faults_numbers, faults_streams, faults_two

PARTS = [*faults_files.PARTS, *faults_two.PARTS, *faults_kill.PARTS, *faults_streams.PARTS, *faults_numbers.PARTS]
