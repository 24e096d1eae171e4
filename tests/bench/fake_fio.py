#!/usr/bin/env python3
"""Takes fio's place where its figures do not matter: writes the file that it was asked for, in a report of one second."""

import json
import sys

arguments = dict(word[2:].split("=", 1) if "=" in word else (word[2:], "") for word in sys.argv[1:])
if "version" in arguments:
    print("fio-3.0")
else:
    if arguments["rw"] == "write":
        with open(arguments["filename"], "wb") as file:
            file.truncate(int(arguments["size"]))
    result = {"job_runtime": 1000, "usr_cpu": 1.0, "sys_cpu": 1.0, "read": {"runtime": 1000}, "write": {"runtime": 1000}}
    print(json.dumps({"jobs": [result]}))
