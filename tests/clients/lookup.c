/* Looks up each name through the C library it is linked with, and fetches its page. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fetch(const char *name, const struct addrinfo *to) {
    char request[512], response[4096];
    size_t length = 0;
    ssize_t more;
    int stream = socket(to->ai_family, SOCK_STREAM, 0);
    snprintf(request, sizeof request, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", name);
    if (stream < 0 || connect(stream, to->ai_addr, to->ai_addrlen) ||
        write(stream, request, strlen(request)) < 0)
        return perror(name), 1;
    while (length + 1 < sizeof response &&
           (more = read(stream, response + length, sizeof response - 1 - length)) > 0)
        length += (size_t)more;
    close(stream);
    response[length] = 0;
    char *body = strstr(response, "\r\n\r\n");
    return fputs(body ? body + 4 : "no page\n", stdout), 0;
}

int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
        char address[NI_MAXHOST];
        int error = getaddrinfo(names[i], "80", &hints, &found);
        if (error == EAI_NONAME) {
            printf("%s none\n", names[i]);
            continue;
        }
        if (error)
            return fprintf(stderr, "%s: %s\n", names[i], gai_strerror(error)), 1;
        printf("%s", names[i]);
        for (each = found; each; each = each->ai_next)
            if (!getnameinfo(each->ai_addr, each->ai_addrlen, address, sizeof address, NULL, 0,
                             NI_NUMERICHOST))
                printf(" %s", address);
        puts("");
        if (fetch(names[i], found))
            return 1;
        freeaddrinfo(found);
    }
    return 0;
}
