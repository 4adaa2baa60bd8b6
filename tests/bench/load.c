/* A load generator: HTTP/1.1, one thread, epoll, loopback only; every answer is compared.
 *
 * It knows what standin.c must have answered (shapes.h) and compares each byte, or with --loose only
 * the numbered words and the terminator. One JSON line at the end; it always ends by itself.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "shapes.h"

#define HEAD_CAP 16384
#define LOOSE_CAP 16384
#define MAX_CONNECTIONS 19000
#define MAX_SAMPLES (1 << 22)
#define READ_CAP 262144

enum state { CLOSED, CONNECTING, IDLE, SENDING, HEAD, BODY };
enum chunk { NOT_CHUNKED, SIZE, SIZE_END, DATA, DATA_CR, DATA_LF, LAST_CR, LAST_LF };

struct conn {
    int fd;
    enum state state;
    enum chunk chunk;
    bool writing, first_seen, over, close_after;
    long long seed, started;
    size_t sent;        /* of head and tail together */
    long long left;     /* of the chunk or of the body */
    int head_len;       /* answer's head so far */
    int want_len, want_off; /* what must come next, plain answers and streams alike */
    int heard_len, heard_words; /* --loose: text not yet judged */
    bool comment;
    char want_plain[ANSWER_CAP];
    struct script script;
    char head[HEAD_CAP];
    char heard[LOOSE_CAP];
};

static struct {
    int port, connections, words;
    long long requests, max_errors;
    double seconds, rate, timeout;
    bool stream, usage, loose;
    long body;
    const char *path, *model;
    enum dialect dialect;
    char headers[4096];
} o = {.port = 0, .connections = 1, .words = 100, .max_errors = 100, .timeout = 60, .body = 1024,
       .path = "/v1/chat/completions", .model = "served"};

static struct conn *conns;
static struct sockaddr_in target;
static int poller, free_count, *free_list;
static char *tail; /* the part of every request after its seed */
static size_t tail_len;
static char front[8192]; /* and the part up to it */
static size_t front_len;
static long long launched, finished, errors, events, bytes, reconnects;
static long long began, ends;
static char first_error[256], scratch[READ_CAP];
static unsigned *first_us, *total_us;
static long long firsts, totals;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(3);
}

static void sample(unsigned *to, long long *count, long long since) {
    if (*count < MAX_SAMPLES) to[(*count)++] = (unsigned)((now_ns() - since) / 1000);
}

/* ---- the request ---- */

/* Everything but the seed is the same in every request; text has the escapes real prompts have. */
static void write_request(void) {
    static const char TEXT[] =
        "Summarise the \\\"incident\\\" below.\\nAt 09:14 the cache of node 7 filled, caf\\u00e9 "
        "and na\xc3\xafve \xe2\x80\x93 see \\\\logs\\\\node7.txt for the rest of it. ";
    size_t unit = sizeof TEXT - 1, count = o.body > 0 ? (size_t)o.body / unit : 0;
    if (!(tail = malloc(count * unit + 1024))) die("malloc");
    /* What stands before the seed, what between it and the text, what after the text. */
    static const char *const PARTS[DIALECTS][3] = {
        {"{\"seed\":", ",\"messages\":[{\"role\":\"user\",\"content\":\"", "\"}]"},
        {"{\"seed\":", ",\"prompt\":\"", "\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"", " ", "\"}]"},
        {"{\"input\":\"", " ", "\""}};
    const char *const *part = PARTS[o.dialect];
    tail_len = (size_t)sprintf(tail, "%s", part[1]);
    for (size_t i = 0; i < count; i++, tail_len += unit) memcpy(tail + tail_len, TEXT, unit);
    tail_len += (size_t)sprintf(tail + tail_len, "%s,\"model\":\"%.64s\"", part[2], o.model);
    if (o.dialect != EMBEDDINGS)
        tail_len += (size_t)sprintf(tail + tail_len, ",\"max_tokens\":%d", o.words);
    if (o.stream) tail_len += (size_t)sprintf(tail + tail_len, ",\"stream\":true");
    if (o.stream && o.usage)
        tail_len += (size_t)sprintf(tail + tail_len, ",\"stream_options\":{\"include_usage\":true}");
    tail_len += (size_t)sprintf(tail + tail_len, "}");
    front_len = (size_t)snprintf(front, sizeof front,
                                 "POST %.512s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n%s"
                                 "content-type: application/json\r\naccept: */*\r\n"
                                 "user-agent: load\r\ncontent-length: %zu\r\n\r\n%s1000000000",
                                 o.path, o.port, o.headers, strlen(part[0]) + 10 + tail_len, part[0]);
}

/* ---- connections ---- */

static void watch(struct conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

static void shut(struct conn *c) {
    if (c->state != CLOSED) close(c->fd);
    c->state = CLOSED;
}

static void release(struct conn *c) { free_list[free_count++] = (int)(c - conns); }

__attribute__((format(printf, 2, 3))) static void fail(struct conn *c, const char *why, ...) {
    if (!errors++) {
        va_list args;
        va_start(args, why);
        vsnprintf(first_error, sizeof first_error, why, args);
        va_end(args);
        for (char *p = first_error; *p; p++)
            if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ' || (unsigned char)*p > '~') *p = '.';
    }
    shut(c);
    release(c);
}

static void finish(struct conn *c) {
    sample(total_us, &totals, c->started);
    finished++;
    if (c->close_after) shut(c);
    else c->state = IDLE;
    release(c);
}

static bool push(struct conn *c) {
    char mine[sizeof front];
    while (c->sent < front_len + tail_len) {
        ssize_t n;
        if (c->sent < front_len) {
            memcpy(mine, front, front_len);
            snprintf(mine + front_len - 10, 11, "%010lld", c->seed);
            struct iovec parts[2] = {{mine + c->sent, front_len - c->sent}, {tail, tail_len}};
            struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
            n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        } else {
            size_t off = c->sent - front_len;
            n = send(c->fd, tail + off, tail_len - off, MSG_NOSIGNAL);
        }
        if (n >= 0) c->sent += (size_t)n;
        else if (errno == EAGAIN) return watch(c, true), true;
        else if (errno != EINTR) return false;
    }
    watch(c, false);
    c->state = HEAD;
    return true;
}

static void dial(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->state = CONNECTING, c->writing = true;
    int done = connect(c->fd, (struct sockaddr *)&target, sizeof target);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
    if (done && errno != EINPROGRESS) fail(c, "connect: %s", strerror(errno));
}

static void begin(struct conn *c, long long scheduled) {
    c->seed = FIRST_SEED + launched++;
    c->started = scheduled;
    c->sent = 0, c->head_len = 0, c->want_len = c->want_off = 0;
    c->heard_len = c->heard_words = 0;
    c->first_seen = c->over = c->close_after = c->comment = false;
    if (o.stream) script_start(&c->script, o.dialect, o.model, c->seed, o.words, o.usage);
    else c->want_len = answer(c->want_plain, o.dialect, o.model, c->seed);
    if (c->state == CLOSED) return dial(c);
    c->state = SENDING;
    if (!push(c)) fail(c, "send: %s", strerror(errno));
}

/* ---- the answer ---- */

static void mark_event(struct conn *c, bool word) {
    if (!c->first_seen) {
        c->first_seen = true;
        sample(first_us, &firsts, c->started);
    }
    events += word;
}

/* Compares a piece of a stream with the script; comments between events are let through. */
static bool expect_events(struct conn *c, const char *at, size_t len) {
    while (len) {
        if (c->comment || (c->want_off == c->want_len && *at == ':')) {
            const char *end = memchr(at, '\n', len);
            c->comment = !end || (end + 1 < at + len && end[1] != '\n');
            size_t used = end ? (size_t)(end - at) + 1 : len;
            if (end && used < len && at[used] == '\n') used++;
            at += used, len -= used;
            continue;
        }
        if (c->want_off == c->want_len) {
            if (!script_next(&c->script)) return false;
            c->want_off = 0, c->want_len = c->script.len;
        }
        size_t n = (size_t)(c->want_len - c->want_off);
        if (n > len) n = len;
        if (memcmp(c->script.text + c->want_off, at, n)) return false;
        c->want_off += (int)n, at += n, len -= n;
        if (c->want_off == c->want_len) mark_event(c, c->script.kind == 'C');
    }
    return true;
}

/* --loose: numbered words in sequence in whatever else an event has, then the terminator. */
static bool hear_event(struct conn *c, const char *event, size_t len) {
    const char *word = memmem(event, len, "\" w", 3), *end = event + len;
    if (*event == ':') return true;
    if (memmem(event, len, "[DONE]", 6) || memmem(event, len, "\"message_stop\"", 14)) {
        c->over = c->heard_words == o.words;
        return c->over;
    }
    mark_event(c, word != NULL);
    if (!word) return true;
    for (word += 2; word + 8 <= end && *word == 'w'; word += 9) {
        if (atoi(word + 1) != c->heard_words) return false;
        c->heard_words++;
        if (word + 9 > end || word[8] != ' ') break;
    }
    return true;
}

static bool hear(struct conn *c, const char *at, size_t len) {
    if (len > (size_t)(LOOSE_CAP - c->heard_len)) return false;
    memcpy(c->heard + c->heard_len, at, len);
    c->heard_len += (int)len;
    if (!o.stream) return true;
    char *from = c->heard, *end = c->heard + c->heard_len;
    for (char *stop; (stop = memmem(from, (size_t)(end - from), "\n\n", 2)); from = stop + 2)
        if (stop > from && !hear_event(c, from, (size_t)(stop - from))) return false;
    c->heard_len = (int)(end - from);
    memmove(c->heard, from, (size_t)c->heard_len);
    return true;
}

static bool expect(struct conn *c, const char *at, size_t len) {
    if (o.loose) { /* in parts, as a network read may be larger than the buffer */
        for (size_t n; len; at += n, len -= n)
            if (!hear(c, at, n = len < LOOSE_CAP / 2 ? len : LOOSE_CAP / 2)) return false;
        return true;
    }
    if (o.stream) return expect_events(c, at, len);
    if (len > (size_t)(c->want_len - c->want_off)) return false;
    if (memcmp(c->want_plain + c->want_off, at, len)) return false;
    c->want_off += (int)len;
    return true;
}

/* --loose: the numbers of the vector in sequence, whatever blanks stand between them. */
static bool has_vector(struct conn *c) {
    int n = 0;
    for (int i = 0; i < c->heard_len; i++)
        if (c->heard[i] != ' ') c->heard[n++] = c->heard[i];
    const char *want = strstr(c->want_plain, "[0."), *end = want ? strchr(want, ']') : NULL;
    return end && memmem(c->heard, (size_t)n, want, (size_t)(end - want) + 1) != NULL;
}

static bool complete(struct conn *c) {
    if (o.loose && o.stream) return c->over;
    if (o.loose && o.dialect == EMBEDDINGS) return has_vector(c);
    if (o.loose) {
        char last[16];
        snprintf(last, sizeof last, " w%07d", WORDS - 1);
        return memmem(c->heard, (size_t)c->heard_len, last, 9) != NULL;
    }
    if (o.stream && c->want_off == c->want_len) return !script_kind(&c->script);
    return c->want_off == c->want_len;
}

/* Takes the body; 1 whole, 0 more to come, -1 wrong. *used says how much was taken. */
static int take_body(struct conn *c, const char *at, size_t len, size_t *used) {
    const char *start = at, *end = at + len;
    int result = 0;
    while (at < end && !result) {
        if (c->chunk == NOT_CHUNKED || c->chunk == DATA) {
            size_t n = (size_t)(end - at);
            if (n > (size_t)c->left) n = (size_t)c->left;
            if (!expect(c, at, n)) return -1;
            at += n, c->left -= (long long)n;
            if (c->left) continue;
            if (c->chunk == NOT_CHUNKED) result = 1;
            c->chunk = c->chunk == DATA ? DATA_CR : NOT_CHUNKED;
            continue;
        }
        char b = *at++;
        switch (c->chunk) {
        case SIZE:
            if (b == '\r') c->chunk = SIZE_END;
            else if (b >= '0' && b <= '9') c->left = c->left * 16 + b - '0';
            else if ((b | 32) >= 'a' && (b | 32) <= 'f') c->left = c->left * 16 + (b | 32) - 'a' + 10;
            else return -1;
            if (c->left > 1 << 30) return -1;
            break;
        case SIZE_END:
            if (b != '\n') return -1;
            c->chunk = c->left ? DATA : LAST_CR;
            break;
        case DATA_CR:
            if (b != '\r') return -1;
            c->chunk = DATA_LF;
            break;
        case DATA_LF:
            if (b != '\n') return -1;
            c->chunk = SIZE, c->left = 0;
            break;
        case LAST_CR:
            if (b != '\r') return -1;
            c->chunk = LAST_LF;
            break;
        default:
            if (b != '\n') return -1;
            result = 1;
        }
    }
    *used = (size_t)(at - start);
    return result;
}

/* Takes the answer's head; how much of `at` was taken, or -1 when it is no good answer. */
static long take_head(struct conn *c, const char *at, size_t len) {
    size_t before = (size_t)c->head_len, n = len;
    if (n > HEAD_CAP - 1 - before) n = HEAD_CAP - 1 - before;
    memcpy(c->head + before, at, n);
    c->head[before + n] = 0;
    char *end = memmem(c->head, before + n, "\r\n\r\n", 4);
    if (!end) {
        c->head_len += (int)n;
        return n < len ? -1 : (long)n;
    }
    size_t taken = (size_t)(end - c->head) + 4 - before;
    end[2] = 0;
    if (strncmp(c->head, "HTTP/1.1 200", 12)) return -1;
    const char *length = strcasestr(c->head, "\ncontent-length:");
    bool chunked = strcasestr(c->head, "\ntransfer-encoding: chunked") != NULL;
    if (!chunked && !length) return -1;
    c->close_after = strcasestr(c->head, "\nconnection: close") != NULL;
    c->chunk = chunked ? SIZE : NOT_CHUNKED;
    c->left = chunked ? 0 : atoll(length + 16);
    c->state = BODY;
    return (long)taken;
}

static void on_input(struct conn *c) {
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (c->state == IDLE) { /* the server's right between two requests; it stays in the free list */
        reconnects++;
        if (n > 0 && !errors++) snprintf(first_error, sizeof first_error, "bytes after an answer");
        return shut(c);
    }
    if (n <= 0) return fail(c, "closed in state %d: %s", c->state, n ? strerror(errno) : "eof");
    bytes += n;
    size_t at = 0;
    if (c->state == SENDING) c->state = HEAD; /* an early refusal */
    if (c->state == HEAD) {
        long taken = take_head(c, scratch, (size_t)n);
        if (taken < 0) return fail(c, "head: %.80s | %.120s", c->head, scratch + (n > 300 ? 200 : 0));
        at = (size_t)taken;
        if (c->state == HEAD) return;
    }
    size_t used = 0;
    int whole = take_body(c, scratch + at, (size_t)n - at, &used);
    if (whole < 0)
        return fail(c, "body of seed %lld, event %d: %.180s", c->seed, c->script.step, scratch + at);
    if (!whole) return;
    if (!complete(c) || at + used != (size_t)n)
        return fail(c, "answer of seed %lld cut or too long at event %d", c->seed, c->script.step);
    finish(c);
}

static void on_connect(struct conn *c) {
    int bad = 0;
    socklen_t size = sizeof bad;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &bad, &size);
    if (bad) return fail(c, "connect: %s", strerror(bad));
    c->state = SENDING;
    if (!push(c)) fail(c, "send: %s", strerror(errno));
}

/* ---- the run ---- */

static bool more(long long now) {
    return (!o.requests || launched < o.requests) && (!o.seconds || now < ends) &&
           errors < o.max_errors;
}

/* Starts what is due; ns until the next arrival, -1 when only answers are awaited. */
static long long launch(void) {
    long long now = now_ns();
    while (free_count && more(now)) {
        long long scheduled = now;
        if (o.rate > 0) {
            /* From the moment it was due: a late start is the server's delay, not the client's. */
            scheduled = began + (long long)((double)launched * 1e9 / o.rate);
            if (scheduled > now) return scheduled - now;
        }
        begin(&conns[free_list[--free_count]], scheduled);
        if (o.rate <= 0 && !(launched & 63)) now = now_ns();
    }
    return -1;
}

static void run(void) {
    struct epoll_event ready[256];
    long long quiet_since = now_ns(), progress = -1;
    began = quiet_since;
    ends = began + (long long)(o.seconds * 1e9);
    for (;;) {
        long long wait = launch();
        if (free_count == o.connections && !more(now_ns())) return;
        if (progress != bytes + errors) progress = bytes + errors, quiet_since = now_ns();
        else if ((double)(now_ns() - quiet_since) / 1e9 > o.timeout) {
            long long open = o.connections - free_count;
            if (!errors) snprintf(first_error, sizeof first_error, "%lld answers never came", open);
            errors += open ? open : 1;
            return;
        }
        if (wait < 0 || wait > 1000000000) wait = 1000000000;
        struct timespec until = {wait / 1000000000, wait % 1000000000};
        int n = epoll_pwait2(poller, ready, 256, &until, NULL);
        if (n < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            if (c->state == CONNECTING) on_connect(c);
            else if (c->state == SENDING && ready[i].events & EPOLLOUT) {
                if (!push(c)) fail(c, "send: %s", strerror(errno));
            } else if (c->state != CLOSED) on_input(c);
        }
    }
}

static int by_size(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static unsigned part(const unsigned *sorted, long long count, double q) {
    return count ? sorted[(long long)(q * (double)(count - 1) + 0.5)] : 0;
}

static void report(double seconds) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    double cpu = (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
                 (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
    if (!o.stream) firsts = 0;
    qsort(first_us, (size_t)firsts, sizeof *first_us, by_size);
    qsort(total_us, (size_t)totals, sizeof *total_us, by_size);
    printf("{\"requests\":%lld,\"errors\":%lld,\"events\":%lld,\"seconds\":%.6f,"
           "\"requests_per_s\":%.1f,\"events_per_s\":%.1f,"
           "\"first_us\":{\"p50\":%u,\"p90\":%u,\"p99\":%u},"
           "\"total_us\":{\"p50\":%u,\"p99\":%u},"
           "\"bytes\":%lld,\"reconnects\":%lld,\"cpu_seconds\":%.6f,\"first_error\":\"%s\"}\n",
           finished, errors, events, seconds, (double)finished / seconds, (double)events / seconds,
           part(first_us, firsts, .5), part(first_us, firsts, .9), part(first_us, firsts, .99),
           part(total_us, totals, .5), part(total_us, totals, .99), bytes, reconnects, cpu,
           first_error);
}

static void usage(FILE *to) {
    fputs("usage: load --port N (--requests N | --seconds S) [options]\n"
          "  --host 127.0.0.1      loopback only\n"
          "  --path PATH           chat completions, completions, messages or embeddings\n"
          "  --model NAME          asked for, and expected back (served)\n"
          "  --header 'name: x'    may be repeated\n"
          "  --connections N       at once (1)\n"
          "  --rate R              open loop: R requests a second, latency from when each was due\n"
          "  --prompt-bytes N      about the size of the body (1024)\n"
          "  --stream --events N   streamed, with N content events (100)\n"
          "  --usage               ask for usage in the stream\n"
          "  --loose               compare numbered words only, for servers that rewrite JSON\n"
          "  --timeout S           give up after S seconds in which nothing came (60)\n"
          "  --max-errors N        start nothing more after N errors (100)\n",
          to);
}

static bool configure(int argc, char **argv) {
    static const struct option OPTIONS[] = {
        {"host", 1, 0, 'H'},       {"port", 1, 0, 'p'},    {"path", 1, 0, 'P'},
        {"model", 1, 0, 'm'},      {"header", 1, 0, 'd'},  {"connections", 1, 0, 'c'},
        {"requests", 1, 0, 'n'},   {"seconds", 1, 0, 's'}, {"rate", 1, 0, 'r'},
        {"prompt-bytes", 1, 0, 'b'}, {"stream", 0, 0, 'S'}, {"events", 1, 0, 'e'},
        {"usage", 0, 0, 'u'},      {"loose", 0, 0, 'l'},   {"timeout", 1, 0, 't'},
        {"max-errors", 1, 0, 'x'}, {"help", 0, 0, 'h'},    {0, 0, 0, 0}};
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int x; (x = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;) {
        size_t used = strlen(o.headers);
        switch (x) {
        case 'H': if (inet_pton(AF_INET, optarg, &target.sin_addr) != 1) return false; break;
        case 'p': o.port = atoi(optarg); break;
        case 'P': o.path = optarg; break;
        case 'm': o.model = optarg; break;
        case 'd':
            if (used + strlen(optarg) + 3 > sizeof o.headers) return false;
            sprintf(o.headers + used, "%s\r\n", optarg);
            break;
        case 'c': o.connections = atoi(optarg); break;
        case 'n': o.requests = atoll(optarg); break;
        case 's': o.seconds = atof(optarg); break;
        case 'r': o.rate = atof(optarg); break;
        case 'b': o.body = atol(optarg); break;
        case 'S': o.stream = true; break;
        case 'e': o.words = atoi(optarg); break;
        case 'u': o.usage = true; break;
        case 'l': o.loose = true; break;
        case 't': o.timeout = atof(optarg); break;
        case 'x': o.max_errors = atoll(optarg); break;
        case 'h': usage(stdout); exit(0);
        default: return false;
        }
    }
    int dialect = dialect_of(o.path, strlen(o.path));
    target.sin_family = AF_INET, target.sin_port = htons((unsigned short)o.port);
    if (dialect < 0 || ntohl(target.sin_addr.s_addr) >> 24 != 127) return false;
    o.dialect = (enum dialect)dialect;
    return o.port > 0 && o.port < 65536 && (o.requests > 0 || o.seconds > 0) && o.connections > 0 &&
           o.connections <= MAX_CONNECTIONS && o.body >= 0 && o.body <= 256L << 20 && o.words >= 0 &&
           strlen(o.model) <= 64 && !(o.stream && o.dialect == EMBEDDINGS);
}

int main(int argc, char **argv) {
    if (!configure(argc, argv)) return usage(stderr), 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    write_request();
    conns = calloc((size_t)o.connections, sizeof *conns);
    free_list = calloc((size_t)o.connections, sizeof *free_list);
    first_us = malloc(MAX_SAMPLES * sizeof *first_us);
    total_us = malloc(MAX_SAMPLES * sizeof *total_us);
    if (!conns || !free_list || !first_us || !total_us) die("malloc");
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    for (int i = o.connections - 1; i >= 0; i--) release(&conns[i]);
    run();
    report((double)(now_ns() - began) / 1e9);
    return errors ? 1 : 0;
}
