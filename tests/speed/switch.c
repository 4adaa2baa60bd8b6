/* Counting on and off, and a name for what was counted, from within the process that is counted. */
#include <valgrind/callgrind.h>

void on(void) { CALLGRIND_START_INSTRUMENTATION; }

void off(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
    CALLGRIND_STOP_INSTRUMENTATION;
}
