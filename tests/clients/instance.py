# An instance of an HTTP service: instance.py ADDRESS PORT (0 for a free one). Prints its port, and
# names it in the header Instance of each response.
import asyncio
import sys


async def main():
    port = 0

    async def serve(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nInstance: {port}\r\nContent-Length: 5\r\nConnection: close"
            writer.write(f"{head}\r\n\r\npage\n".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print(port, flush=True)
    await server.serve_forever()


asyncio.run(main())
