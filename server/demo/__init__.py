"""`mkf demo`: the service with a broker on each side and devices that talk, all in one terminal and nothing to set up.

Not part of the service: nothing imports this package but the command line. It sees the service only from outside, as
a process with a configuration file and an API.
"""

from server.demo.run import run_demo

__all__ = ["run_demo"]
