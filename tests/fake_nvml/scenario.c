#include "scenario.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static scenario_t *current;
static struct timespec read_mtime;
static ino_t read_inode;
static double looked_at;
static double first_epoch;

void scenario_lock(void) { pthread_mutex_lock(&mutex); }
void scenario_unlock(void) { pthread_mutex_unlock(&mutex); }

static double monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

double scenario_seconds(const scenario_t *scenario) { return monotonic() - scenario->epoch; }

/* Grows `array` to hold one more item and returns a pointer to that item, zeroed. */
static void *append(void **array, int *count, size_t item_bytes)
{
    if ((*count & (*count - 1)) == 0) /* a power of two (or zero): full */
        *array = realloc(*array, (*count ? 2 * *count : 1) * item_bytes);
    void *item = (char *)*array + (size_t)(*count)++ * item_bytes;
    memset(item, 0, item_bytes);
    return item;
}

static unsigned hash(const char *key)
{
    unsigned h = 2166136261u;
    for (; *key; key++)
        h = (h ^ (unsigned char)*key) * 16777619u;
    return h;
}

static int find_slot(const device_t *device, const char *key)
{
    int slot = hash(key) & (device->slot_count - 1);
    while (device->slots[slot] >= 0 && strcmp(device->values[device->slots[slot]].key, key))
        slot = (slot + 1) & (device->slot_count - 1);
    return slot;
}

static void index_values(device_t *device)
{
    device->slot_count = 16;
    while (device->slot_count < 2 * device->value_count + 1)
        device->slot_count *= 2;
    device->slots = realloc(device->slots, device->slot_count * sizeof(int));
    memset(device->slots, 0xff, device->slot_count * sizeof(int));
    for (int i = 0; i < device->value_count; i++)
        device->slots[find_slot(device, device->values[i].key)] = i;
}

const value_t *device_value(const device_t *device, const char *key)
{
    int index = device->slots[find_slot(device, key)];
    return index >= 0 ? &device->values[index] : NULL;
}

void value_at(const value_t *value, double t, uint64_t numbers[MAX_NUMBERS])
{
    int low = 0, high = value->point_count; /* the last point not after t */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (value->points[middle].at <= t)
            low = middle;
        else
            high = middle;
    }
    memcpy(numbers, value->points[low].numbers, sizeof value->points[low].numbers);
    if (value->rate != 0 || value->amplitude != 0) {
        double moved = value->rate * t;
        if (value->amplitude != 0)
            moved += value->amplitude * sin(6.283185307179586 * t / value->period);
        numbers[0] = (uint64_t)((int64_t)numbers[0] + (int64_t)moved);
    }
}

static value_t *value_for(device_t *device, const char *key)
{
    if (device->slot_count == 0 || device->slot_count < 2 * device->value_count + 2)
        index_values(device);
    int slot = find_slot(device, key);
    if (device->slots[slot] < 0) {
        value_t *value = append((void **)&device->values, &device->value_count, sizeof(value_t));
        snprintf(value->key, sizeof value->key, "%s", key);
        device->slots[slot] = device->value_count - 1;
    }
    return &device->values[device->slots[slot]];
}

static uint64_t number(const char *word) { return strcmp(word, "na") == 0 ? NOT_AVAILABLE : strtoull(word, NULL, 0); }

static device_t *new_device(device_t *parent)
{
    device_t *device = calloc(1, sizeof *device);
    device->parent = parent;
    index_values(device);
    return device;
}

static void add_point(device_t *device, double at, char **words, int count)
{
    value_t *value = value_for(device, words[0]);
    point_t *point = append((void **)&value->points, &value->point_count, sizeof(point_t));
    point->at = at;
    for (int i = 1; i < count && i <= MAX_NUMBERS; i++)
        point->numbers[i - 1] = number(words[i]);
}

static void add_fault(device_t *device, enum fault_kind kind, char **words, int count)
{
    fault_t *fault = append((void **)&device->faults, &device->fault_count, sizeof(fault_t));
    fault->kind = kind;
    snprintf(fault->call, sizeof fault->call, "%s", words[1]);
    fault->argument = count > 2 ? strtol(words[2], NULL, 0) : 0;
}

static double time_word(char **words, int count, int index, double otherwise)
{
    return count > index && strcmp(words[index], "-") ? strtod(words[index], NULL) : otherwise;
}

/* One line of a device, already split; unknown words are fatal, since a misspelt switch would test nothing. */
static int device_line(device_t *device, char **words, int count)
{
    if (!strcmp(words[0], "get") && count >= 3) {
        add_point(device, 0, words + 1, count - 1);
    } else if (!strcmp(words[0], "at") && count >= 4) {
        add_point(device, strtod(words[1], NULL), words + 2, count - 2);
    } else if (!strcmp(words[0], "rate") && count == 3) {
        value_for(device, words[1])->rate = strtod(words[2], NULL);
    } else if (!strcmp(words[0], "wave") && count == 4) {
        value_t *value = value_for(device, words[1]);
        value->amplitude = strtod(words[2], NULL);
        value->period = strtod(words[3], NULL);
    } else if (!strcmp(words[0], "hang") && count == 2) {
        add_fault(device, FAULT_HANG, words, count);
    } else if (!strcmp(words[0], "slow") && count == 3) {
        add_fault(device, FAULT_SLOW, words, count);
    } else if (!strcmp(words[0], "error") && count == 3) {
        add_fault(device, FAULT_ERROR, words, count);
    } else if (!strcmp(words[0], "process") && count >= 4) {
        process_t *process = append((void **)&device->processes, &device->process_count, sizeof(process_t));
        process->kind = words[1][0];
        process->pid = number(words[2]);
        process->bytes = number(words[3]);
        process->from = time_word(words, count, 4, -1e18);
        process->until = time_word(words, count, 5, 1e18);
        process->gpu_instance = process->compute_instance = 0xffffffffu;
        if (count >= 8) {
            process->gpu_instance = number(words[6]);
            process->compute_instance = number(words[7]);
        }
    } else if (!strcmp(words[0], "busy") && count >= 6) {
        busy_t *busy = append((void **)&device->busy, &device->busy_count, sizeof(busy_t));
        busy->pid = number(words[1]);
        busy->sm = number(words[2]);
        busy->memory = number(words[3]);
        busy->encoder = number(words[4]);
        busy->decoder = number(words[5]);
        busy->from = time_word(words, count, 6, -1e18);
        busy->until = time_word(words, count, 7, 1e18);
        busy->stamp_us = count > 8 ? number(words[8]) : 0;
    } else if (!strcmp(words[0], "event") && count == 5) {
        event_t *event = append((void **)&device->events, &device->event_count, sizeof(event_t));
        event->id = number(words[1]);
        event->at = time_word(words, count, 2, -1e18);
        event->type = number(words[3]);
        event->data = number(words[4]);
    } else {
        return 0;
    }
    return 1;
}

static scenario_t *parse(FILE *file)
{
    scenario_t *scenario = calloc(1, sizeof *scenario);
    scenario->system = new_device(NULL);
    scenario->process_struct_bytes = 24;
    scenario->epoch = first_epoch;
    device_t *device = scenario->system, *gpu = NULL;
    char line[1024];
    while (fgets(line, sizeof line, file)) {
        char whole[1024], *words[16], *rest = NULL;
        int count = 0;
        line[strcspn(line, "\r\n")] = 0;
        strcpy(whole, line);
        for (char *word = strtok_r(line, " \t", &rest); word && count < 16; word = strtok_r(NULL, " \t", &rest))
            words[count++] = word;
        if (count == 0 || words[0][0] == '#')
            continue;
        if (!strcmp(words[0], "gpu")) {
            device = gpu = new_device(NULL);
            device_t **item = append((void **)&scenario->gpus, &scenario->gpu_count, sizeof(device_t *));
            *item = gpu;
        } else if (!strcmp(words[0], "mig") && gpu) {
            device = new_device(gpu);
            device_t **item = append((void **)&gpu->migs, &gpu->mig_count, sizeof(device_t *));
            *item = device;
        } else if (!strcmp(words[0], "text") && count >= 3) {
            value_t *value = value_for(device, words[1]);
            free(value->text);
            value->text = strdup(whole + (words[2] - line));
        } else if (!strcmp(words[0], "epoch") && count == 2) {
            scenario->epoch = strtod(words[1], NULL);
        } else if (!strcmp(words[0], "generation") && count == 2) {
            scenario->generation = strtol(words[1], NULL, 0);
        } else if (!strcmp(words[0], "process_struct_bytes") && count == 2) {
            scenario->process_struct_bytes = (int)number(words[1]);
        } else if (!device_line(device, words, count)) {
            fprintf(stderr, "fake nvml: scenario line not understood: %s\n", whole);
            abort();
        }
    }
    return scenario;
}

static void free_device(device_t *device)
{
    for (int i = 0; i < device->value_count; i++) {
        free(device->values[i].text);
        free(device->values[i].points);
    }
    for (int i = 0; i < device->mig_count; i++)
        free_device(device->migs[i]);
    free(device->values);
    free(device->slots);
    free(device->faults);
    free(device->processes);
    free(device->busy);
    free(device->events);
    free(device->migs);
    free(device);
}

static void free_scenario(scenario_t *scenario)
{
    free_device(scenario->system);
    for (int i = 0; i < scenario->gpu_count; i++)
        free_device(scenario->gpus[i]);
    free(scenario->gpus);
    free(scenario);
}

scenario_t *scenario_now(void)
{
    double now = monotonic();
    if (first_epoch == 0)
        first_epoch = now;
    if (current && now - looked_at < 0.001) /* a stat a millisecond, not one a call */
        return current;
    looked_at = now;
    const char *path = getenv("FAKE_NVML_SCENARIO");
    struct stat found;
    if (!path || stat(path, &found)) {
        fprintf(stderr, "fake nvml: FAKE_NVML_SCENARIO names no file\n");
        abort();
    }
    if (current && found.st_ino == read_inode && found.st_mtim.tv_sec == read_mtime.tv_sec
        && found.st_mtim.tv_nsec == read_mtime.tv_nsec)
        return current;
    FILE *file = fopen(path, "r");
    if (!file)
        abort();
    scenario_t *fresh = parse(file);
    fclose(file);
    if (current)
        free_scenario(current);
    current = fresh;
    read_mtime = found.st_mtim;
    read_inode = found.st_ino;
    return current;
}
