# Looks up each name through the C library, and fetches its page.
import socket
import sys
import urllib.request

for name in sys.argv[1:]:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(name, 80)}
    except socket.gaierror:
        print(name, "none")
        continue
    print(name, *sorted(found))
    print(urllib.request.urlopen(f"http://{name}/", timeout=20).read().decode(), end="")
