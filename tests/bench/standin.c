/* A model server's stand-in: HTTP/1.1 in vLLM 0.32's shape, one thread, epoll, loopback only.
 *
 * It spends almost nothing, so that what is measured is the gateway in front of it. It prints one
 * JSON line with its ports once it listens, and ends with its parent or at SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shapes.h"

#define OUT_CAP 12288
#define MAX_PORTS 8
#define MAX_HEAD 65536
#define MAX_BODY (256L << 20)
#define KEEP_IN 65536 /* a larger input buffer is given back after its request */
#define IDLE_NS 5000000000LL /* vLLM's VLLM_HTTP_TIMEOUT_KEEP_ALIVE: how long it waits for the next */

struct conn {
    int fd;
    bool listening, streaming, ended, writing, closing;
    int place; /* in the heap of those that wait for a time, -1 outside */
    long long due, gap; /* of a paced stream: when its next event is, and how long after it the one
                           behind that; between requests: when the connection is closed */
    char *in;
    size_t in_len, in_cap, need; /* need: head and body of the request being read, 0 unknown */
    size_t head_len;
    size_t out_len, out_off;
    char out[OUT_CAP];
    struct script script;
};

static const char *model = "served";
static int default_words = 100;
static long long pace_ns;
static int poller;
static long long running, finished, aborted, streams_started;

static struct conn **heap;
static int heap_len, heap_cap;

static void die(const char *what) {
    perror(what);
    exit(3);
}

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- those that wait for a time, the earliest first ---- */

static void heap_set(int at, struct conn *c) {
    heap[at] = c;
    c->place = at;
}

static void heap_sift(int at) {
    struct conn *c = heap[at];
    for (int up = (at - 1) / 2; at > 0 && heap[up]->due > c->due; at = up, up = (at - 1) / 2)
        heap_set(at, heap[up]);
    for (int down; (down = 2 * at + 1) < heap_len; at = down) {
        if (down + 1 < heap_len && heap[down + 1]->due < heap[down]->due) down++;
        if (heap[down]->due >= c->due) break;
        heap_set(at, heap[down]);
    }
    heap_set(at, c);
}

static void heap_add(struct conn *c) {
    if (heap_len == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 1024;
        if (!(heap = realloc(heap, (size_t)heap_cap * sizeof *heap))) die("realloc");
    }
    heap_set(heap_len++, c);
    heap_sift(c->place);
}

static void heap_remove(struct conn *c) {
    int at = c->place;
    if (at < 0) return;
    c->place = -1;
    struct conn *last = heap[--heap_len];
    if (last == c) return;
    heap_set(at, last);
    heap_sift(at);
}

/* ---- connections ---- */

static void drop(struct conn *c) {
    if (c->streaming) running--, aborted++;
    heap_remove(c);
    close(c->fd);
    free(c->in);
    free(c);
}

static void watch(struct conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

/* 1: all was sent. 0: the socket is full. -1: the client is gone. */
static int flush(struct conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (n >= 0) c->out_off += (size_t)n;
        else if (errno == EAGAIN) return watch(c, true), 0;
        else if (errno != EINTR) return -1;
    }
    c->out_len = c->out_off = 0;
    watch(c, false);
    return 1;
}

static void reply(struct conn *c, const char *status, const char *type, const char *body, int len) {
    c->out_len += (size_t)snprintf(c->out + c->out_len, OUT_CAP - c->out_len,
                                   "HTTP/1.1 %s\r\ndate: Mon, 01 Jan 2029 00:00:00 GMT\r\n"
                                   "server: uvicorn\r\ncontent-length: %d\r\ncontent-type: %s\r\n"
                                   "%s\r\n",
                                   status, len, type, c->closing ? "connection: close\r\n" : "");
    memcpy(c->out + c->out_len, body, (size_t)len);
    c->out_len += (size_t)len;
}

static void reply_json(struct conn *c, const char *status, const char *body) {
    reply(c, status, "application/json", body, (int)strlen(body));
}

/* ---- requests ---- */

/* The value after `"name":`, blanks skipped; NULL if the body has no such member. */
static const char *member(const char *body, size_t len, const char *name) {
    const char *at = memmem(body, len, name, strlen(name)), *end = body + len;
    if (!at) return NULL;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++) {}
    return at < end ? at : NULL;
}

static bool is_true(const char *body, size_t len, const char *name) {
    const char *value = member(body, len, name);
    return value && body + len - value >= 4 && !memcmp(value, "true", 4);
}

static long long number(const char *body, size_t len, const char *name, long long otherwise) {
    const char *value = member(body, len, name);
    return value && *value >= '0' && *value <= '9' ? atoll(value) : otherwise;
}

/* The number that a text begins with. */
static long long first_word(const char *body, size_t len, const char *name) {
    const char *value = member(body, len, name), *end = body + len;
    while (value && value < end && strchr(" [\"", *value)) value++;
    return value && value < end ? atoll(value) : 0;
}

static long long seed_of(enum dialect dialect, const char *body, size_t len) {
    if (dialect == MESSAGES) return first_word(body, len, "\"content\"");
    if (dialect == EMBEDDINGS) return first_word(body, len, "\"input\"");
    return number(body, len, "\"seed\"", 0);
}

static void generate(struct conn *c, enum dialect dialect, const char *body, size_t len) {
    const char *asked = member(body, len, "\"model\"");
    size_t named = strlen(model);
    if (!asked || body + len - asked < (long)named + 2 || *asked != '"' ||
        memcmp(asked + 1, model, named) || asked[named + 1] != '"') {
        reply_json(c, "404 Not Found",
                   "{\"error\":{\"message\":\"The model does not exist.\","
                   "\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}");
        return;
    }
    long long seed = seed_of(dialect, body, len);
    if (dialect == EMBEDDINGS || !is_true(body, len, "\"stream\"")) {
        char text[ANSWER_CAP];
        int n = answer(text, dialect, model, seed);
        reply(c, "200 OK", "application/json", text, n);
        finished++;
        return;
    }
    long long words = number(body, len, "\"max_tokens\"", default_words);
    words = number(body, len, "\"max_completion_tokens\"", words); /* what a router makes of it */
    if (words > 9999999) words = 9999999;
    bool usage = is_true(body, len, "\"include_usage\"");
    script_start(&c->script, dialect, model, seed, (int)words, usage);
    c->streaming = true, c->ended = false, running++;
    /* The first event comes at once; the second within one pace, spread over it by the golden ratio,
     * or all streams would beat together. */
    c->due = now_ns();
    c->gap = pace_ns * (streams_started++ * 618034 % 1000000) / 1000000;
    c->out_len += (size_t)snprintf(c->out + c->out_len, OUT_CAP - c->out_len,
                                   "HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2029 00:00:00 GMT\r\n"
                                   "server: uvicorn\r\n"
                                   "content-type: text/event-stream; charset=utf-8\r\n%s"
                                   "transfer-encoding: chunked\r\n\r\n",
                                   c->closing ? "connection: close\r\n" : "");
}

static void tell(struct conn *c, const char *path) {
    char text[2048];
    if (!strcmp(path, "/health")) return reply(c, "200 OK", "text/plain", "", 0);
    if (!strncmp(path, "/pace/", 6)) { /* the driver's own: microseconds between events from now on */
        pace_ns = atoll(path + 6) * 1000;
        return reply_json(c, "200 OK", "{}");
    }
    if (!strcmp(path, "/version")) return reply_json(c, "200 OK", "{\"version\":\"0.32.0\"}");
    if (!strcmp(path, "/v1/models")) {
        snprintf(text, sizeof text,
                 "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":%d,"
                 "\"owned_by\":\"vllm\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":131072,"
                 "\"permission\":[]}]}",
                 model, CREATED, model);
        return reply_json(c, "200 OK", text);
    }
    if (!strcmp(path, "/openapi.json"))
        return reply_json(
            c, "200 OK",
            "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"FastAPI\",\"version\":\"0.32.0\"},"
            "\"paths\":{\"/v1/chat/completions\":{\"post\":{}},\"/v1/completions\":{\"post\":{}},"
            "\"/v1/messages\":{\"post\":{}},\"/v1/embeddings\":{\"post\":{}}},"
            "\"components\":{\"schemas\":{\"ChatCompletionRequest\":{\"type\":\"object\","
            "\"properties\":{\"model\":{},\"messages\":{},\"stream\":{},\"stream_options\":{},"
            "\"max_tokens\":{},\"seed\":{},\"cache_salt\":{},\"priority\":{}}},"
            "\"CompletionRequest\":{\"type\":\"object\",\"properties\":{\"model\":{},\"prompt\":{},"
            "\"stream\":{},\"stream_options\":{},\"max_tokens\":{},\"seed\":{},"
            "\"cache_salt\":{}}},\"AnthropicMessagesRequest\":{\"type\":\"object\","
            "\"properties\":{\"model\":{},\"messages\":{},\"stream\":{},\"max_tokens\":{},"
            "\"cache_salt\":{}}}}}}");
    if (!strcmp(path, "/metrics")) {
        int n = snprintf(text, sizeof text,
                         "vllm:num_requests_running{engine=\"0\",model_name=\"%s\"} %lld\n"
                         "vllm:num_requests_waiting{engine=\"0\",model_name=\"%s\"} 0\n"
                         "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"%s\"} 0.0\n"
                         "vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"%s\"} %lld\n"
                         "standin_aborted_total %lld\n",
                         model, running, model, model, model, now_ns() / 1000000, aborted);
        return reply(c, "200 OK", "text/plain; version=0.0.4", text, n);
    }
    reply_json(c, "404 Not Found", "{\"detail\":\"Not Found\"}");
}

static void handle(struct conn *c) {
    char *head = c->in, *space = memchr(head, ' ', c->head_len);
    char *target = space ? space + 1 : head, *end = strpbrk(target, " \r");
    if (!space || !end || *end != ' ') {
        c->closing = true;
        return reply_json(c, "400 Bad Request", "{}");
    }
    const char *closing = strcasestr(end, "\nconnection: close");
    c->closing = closing && closing < head + c->head_len;
    int dialect = dialect_of(target, (size_t)(end - target));
    if (dialect >= 0) {
        if (memcmp(head, "POST ", 5)) return reply_json(c, "405 Method Not Allowed", "{}");
        return generate(c, (enum dialect)dialect, head + c->head_len, c->need - c->head_len);
    }
    char path[256];
    snprintf(path, sizeof path, "%.*s", (int)(end - target), target);
    path[strcspn(path, "?")] = 0;
    tell(c, path);
}

/* Looks for a whole request: 1 found, 0 not yet, -1 not to be read. */
static int whole_request(struct conn *c) {
    if (!c->need) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return c->in_len < MAX_HEAD ? 0 : -1;
        end[2] = 0; /* the head as a string, for the searches here and in handle() */
        c->head_len = (size_t)(end - c->in) + 4;
        const char *length = strcasestr(c->in, "\ncontent-length:");
        long body = length ? atol(length + 16) : 0;
        if (strcasestr(c->in, "\ntransfer-encoding:") || body < 0 || body > MAX_BODY) return -1;
        c->need = c->head_len + (size_t)body;
    }
    return c->in_len >= c->need;
}

static bool room(struct conn *c) {
    size_t want = c->need > c->in_len ? c->need : c->in_len + 4096;
    if (want < 8192) want = 8192;
    if (c->in_cap >= want + 1) return true;
    char *grown = realloc(c->in, want + 1);
    if (grown) c->in = grown, c->in_cap = want + 1;
    return grown != NULL;
}

static void consume(struct conn *c) {
    size_t rest = c->in_len - c->need;
    memmove(c->in, c->in + c->need, rest);
    c->in_len = rest, c->need = 0;
    if (c->in_cap > KEEP_IN && !rest) {
        free(c->in);
        c->in = NULL, c->in_cap = 0;
    }
}

/* Nothing is under way on it: like vLLM's, it is closed unless a request comes. */
static void rest(struct conn *c) {
    heap_remove(c);
    c->due = now_ns() + IDLE_NS;
    heap_add(c);
}

/* Sends what can be sent and takes the next request; false when the connection is over. */
static bool advance(struct conn *c) {
    for (;;) {
        int sent = flush(c);
        if (sent < 1) return sent == 0;
        if (c->streaming) {
            if (c->ended) {
                c->streaming = false, running--, finished++;
                continue;
            }
            if (pace_ns) {
                if (c->due > now_ns()) return heap_add(c), true;
                c->due += c->gap, c->gap = pace_ns;
            }
            if (script_next(&c->script)) {
                int n = snprintf(c->out, OUT_CAP, "%x\r\n", (unsigned)c->script.len);
                memcpy(c->out + n, c->script.text, (size_t)c->script.len);
                memcpy(c->out + n + c->script.len, "\r\n", 2);
                c->out_len = (size_t)(n + c->script.len + 2);
            } else {
                memcpy(c->out, "0\r\n\r\n", 5);
                c->out_len = 5, c->ended = true;
            }
            continue;
        }
        if (c->closing) return false;
        if (!c->in_len) return rest(c), true;
        int found = whole_request(c);
        if (found < 1) return found == 0;
        handle(c);
        consume(c);
    }
}

static bool on_input(struct conn *c) {
    if (!c->streaming) heap_remove(c);
    /* While answering, at most a buffer of the next request is taken. */
    while (!(c->streaming && c->in_len >= MAX_HEAD)) {
        if (!room(c)) return false;
        ssize_t n = recv(c->fd, c->in + c->in_len, c->in_cap - 1 - c->in_len, 0);
        if (n == 0) return false;
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return false;
            break;
        }
        bool full = (size_t)n == c->in_cap - 1 - c->in_len;
        c->in_len += (size_t)n;
        c->in[c->in_len] = 0;
        if (!c->streaming && whole_request(c) != 0) break;
        if (!full) break;
    }
    return c->streaming ? c->in_len < MAX_HEAD : advance(c);
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd, c->place = -1;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

/* Listens on a loopback port (0: any) and returns which. */
static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    socklen_t size = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) die("listen");
    getsockname(fd, (struct sockaddr *)&at, &size);
    struct conn *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd, c->listening = true, c->place = -1;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    return ntohs(at.sin_port);
}

static void serve(void) {
    struct epoll_event ready[256];
    for (;;) {
        struct timespec wait = {0, 0}, *until = NULL;
        if (heap_len) {
            long long left = heap[0]->due - now_ns();
            if (left > 0) wait.tv_sec = left / 1000000000, wait.tv_nsec = left % 1000000000;
            until = &wait;
        }
        int n = epoll_pwait2(poller, ready, 256, until, NULL);
        if (n < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            unsigned events = ready[i].events;
            if (c->listening) {
                welcome(c->fd);
                continue;
            }
            bool alive = !(events & (EPOLLERR | EPOLLHUP));
            if (alive && events & EPOLLOUT) alive = advance(c);
            if (alive && events & (EPOLLIN | EPOLLRDHUP)) alive = on_input(c);
            if (!alive) drop(c);
        }
        for (long long now = now_ns(); heap_len && heap[0]->due <= now;) {
            struct conn *c = heap[0];
            heap_remove(c);
            if (!c->streaming || !advance(c)) drop(c);
        }
    }
}

static void usage(FILE *to) {
    fputs("usage: standin [--port N]... [--model NAME] [--events N] [--pace MICROSECONDS]\n"
          "  --port    loopback port, several allowed; 0 or none: any free one\n"
          "  --model   the one model served (served)\n"
          "  --events  content events of a stream without max_tokens (100)\n"
          "  --pace    microseconds between a stream's events (0: as fast as the socket takes)\n",
          to);
}

int main(int argc, char **argv) {
    static const struct option OPTIONS[] = {
        {"port", 1, 0, 'p'},   {"model", 1, 0, 'm'}, {"events", 1, 0, 'e'},
        {"pace", 1, 0, 'a'},   {"help", 0, 0, 'h'},  {0, 0, 0, 0}};
    int ports[MAX_PORTS] = {0}, count = 0;
    for (int o; (o = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;) {
        if (o == 'p' && count < MAX_PORTS) ports[count++] = atoi(optarg);
        else if (o == 'm' && strlen(optarg) <= 64) model = optarg;
        else if (o == 'e') default_words = atoi(optarg);
        else if (o == 'a') pace_ns = atoll(optarg) * 1000;
        else return usage(o == 'h' ? stdout : stderr), o == 'h' ? 0 : 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    printf("{\"ports\":[%d", listen_on(ports[0]));
    for (int i = 1; i < count; i++) printf(",%d", listen_on(ports[i]));
    puts("]}");
    fflush(stdout);
    serve();
}
