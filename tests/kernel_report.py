"""What a kernel can find out about itself, as a cell that prints it: for telling two kernels apart."""

from __future__ import annotations

# What no kernel has twice is told by its shape. It wants READS as the module `reads` where it runs.
REPORT = """
import faulthandler, gc, json, locale, logging, os, random, re, signal, sqlite3, sys, tempfile, threading, time
from ipykernel.kernelapp import IPKernelApp
app, shell = IPKernelApp.instance(), get_ipython()
here = re.compile(r"/k/[0-9a-z]+/")
def plain(value):
    return here.sub("/k/NAME/", str(value))
handlers = {name: str(signal.getsignal(getattr(signal, name))).split(" at ")[0]
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGCHLD")}
fds = []
for fd in os.listdir("/proc/self/fd"):
    try:
        fds.append(re.sub(r"\\d+|-journal$", "", plain(os.readlink("/proc/self/fd/" + fd))))
    except OSError:
        pass
print(json.dumps({
    "environ": {k: plain(v) for k, v in os.environ.items()}, "cwd": os.getcwd(), "argv": [plain(a) for a in sys.argv],
    "orig_argv": len(sys.orig_argv), "path": sys.path, "dh": [str(d) for d in _dh], "starting": shell.starting_dir,
    "ns": sorted(n for n in shell.user_ns if not re.match("_i*[0-9]*$", n)),
    "hidden": sorted(map(str, shell.user_ns_hidden)), "session": shell.user_ns.get("__session__"),
    "locale": [locale.getlocale(), sys.getfilesystemencoding(), sys.flags.utf8_mode],
    "fds": sorted({fd for fd in fds if "profile_default" not in fd}),
    "handlers": handlers, "threads": sorted(t.name.split("-")[0] for t in threading.enumerate()),
    "leader": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(), "prefix": sys.prefix,
    "umask": os.umask(0o22), "oom": open("/proc/self/oom_score_adj").read(),
    "comm": open("/proc/self/comm").read(), "nice": os.nice(0),
    "zone": time.strftime("%Z", time.localtime(0)), "tzname": time.tzname, "faults": faulthandler.is_enabled(),
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0], "modules": sorted(sys.modules),
    "extensions": sorted(shell.extension_manager.loaded), "magics": sorted(shell.magics_manager.magics["line"]),
    "profile": str(shell.profile_dir.location), "history": str(shell.history_manager.hist_file),
    "lines": shell.history_manager.session_number > 0, "file": plain(app.connection_file),
    "key": app.session.key.decode(), "ip": plain(app.ip), "config": plain(app.config), "log": app.log.level,
    "loggers": sorted(n for n in logging.root.manager.loggerDict), "count": shell.execution_count,
    "events": {k: len(v) for k, v in shell.events.callbacks.items()}, "tmp": tempfile.gettempdir(),
    "sqlite": sqlite3.connect.__wrapped__ is not None, "main": sys.modules["__main__"].__name__,
    "imported": __import__("reads").SEEN,
}))
"""
# A module that looks at its environment when it is imported, as numerical libraries do.
READS = "import os\nSEEN = {name: os.environ.get(name) for name in ('OMP_NUM_THREADS', 'OWN', 'TZ')}\n"
