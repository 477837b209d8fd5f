// A libcuda.so.1 for tests: the functions that src/device/cuda calls, on memory of this process. Kernels are the libraries
// that fake_nvrtc.cpp makes.
//
// Work is started late, as on a GPU: copies, fills, launches and events wait in their stream's queue until something waits for
// them, so that a host which reuses memory too early, or forgets to wait, gets wrong values. A stream that somebody waits for
// runs alone, but for what it waits for itself; the stream that FAKE_CUDA_EAGER numbers, counting from 0, runs whatever it can
// at once. So each stream may be far behind the others or far ahead of them, and a wait that is missing between two of them
// gives wrong values under one of the orders. Fresh memory is filled with NaN bits, addresses are checked against what is
// allocated, and calls that a capture forbids are refused; so is a launch that would overlap with anything but a launch.
//
// Environment: FAKE_CUDA_DEVICES (1), FAKE_CUDA_VERSION (13000), FAKE_CUDA_STUB=1 (a library for linking, which refuses all),
// FAKE_CUDA_CAPABILITY (90), FAKE_CUDA_MEMORY in bytes, FAKE_CUDA_FAULT=n (the n-th kernel touches an illegal address),
// FAKE_CUDA_EAGER=n (none), FAKE_CUDA_REPORT=1 (how programs were started, to standard error at the end). -DFAKE_CUDA_OLD leaves
// a function out.
// fake_cuda("...") tells counts of calls and of objects that live.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unistd.h>

#include "cuda_cpu.h"
#include "fake_image.h"

namespace {

enum Code {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    STUB_LIBRARY = 34,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
};

typedef unsigned long long Address;

long setting(const char* name, long standard) {
    const char* text = getenv(name);
    return text ? atol(text) : standard;
}

struct Function {
    bool (*run)(const cuda_cpu::Call*);
    size_t params_bytes;
};

struct Module {
    void* library;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Launch {
    const Function* function;
    unsigned grid[3], threads;
    std::vector<uint64_t> params;
    void* pages[8];
    void* table;
};

struct Stream;

// One record of an event: the event may be recorded anew while streams still wait for this.
struct Mark {
    Stream* stream;
    bool reached;
    double seconds;
};

// CUlaunchAttribute and CUlaunchConfig of cuda.h.
enum { PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

struct LaunchAttribute {
    unsigned id;
    char pad[4];
    alignas(8) int value;
    char rest[60];
};

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    Stream* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};

static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "as in cuda.h");

struct Event {
    bool timed;
    std::shared_ptr<Mark> mark;  // none before it is recorded
};

// What waits in a stream, and for what.
struct Task {
    std::function<void()> work;
    std::shared_ptr<Mark> needs;
};

struct Stream {
    long number;
    std::deque<Task> queue;
    bool launched;  // what was put into it last is a launch

    bool blocked() const { return queue.front().needs && !queue.front().needs->reached; }
};

typedef std::vector<Launch> Graph;

int sticky = SUCCESS;  // what every call returns after a fault
long executed = 0;     // kernels
int contexts = 0;      // how often the primary context is retained
void* current = nullptr;
char context;
size_t used = 0;
std::set<Stream*> streams;
Stream* capturing = nullptr;
Graph captured;
std::map<Address, size_t> memory;
std::map<char*, size_t> pinned;
std::map<std::string, long> counts;

// Ends before the counts do.
struct Report {
    ~Report() {
        if (!setting("FAKE_CUDA_REPORT", 0)) return;
        fprintf(stderr, "fake_cuda: graph launches %ld, launches %ld, overlapping launches %ld\n", counts["graph launches"],
                counts["launches"], counts["overlapping launches"]);
    }
} report;

void fault(int code, const char* why) {
    if (!sticky) fprintf(stderr, "fake driver: %s\n", why);
    if (!sticky) sticky = code;
}

// Runs the first of what waits in a stream.
void run_first(Stream& stream) {
    const Task next = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (next.work) next.work();
    if (!sticky) return;
    for (Stream* any : streams) any->queue.clear();
}

// Runs what the eager stream can.
void hurry() {
    static const long eager = setting("FAKE_CUDA_EAGER", -1);
    for (Stream* stream : streams) {
        while (stream->number == eager && !stream->queue.empty() && !stream->blocked()) run_first(*stream);
    }
}

// Brings a stream one task further, or the one that it waits for.
void advance(Stream& stream) {
    if (stream.queue.empty()) return;
    if (stream.blocked()) advance(*stream.queue.front().needs->stream);
    else run_first(stream);
    hurry();
}

void finish(Stream& stream) {
    while (!stream.queue.empty()) advance(stream);
}

void drain() {
    for (Stream* stream : streams) finish(*stream);
}

void put(Stream* stream, std::function<void()> work, std::shared_ptr<Mark> needs = nullptr) {
    stream->queue.push_back({std::move(work), std::move(needs)});
    stream->launched = false;
    hurry();
}

template <class Map, class Key>
bool within(const Map& map, Key at, size_t bytes) {
    auto after = map.upper_bound(at);
    if (after == map.begin()) return false;
    --after;
    return at >= after->first && size_t(at - after->first) + bytes <= after->second;
}

void run(const Launch& launch) {
    if (++executed == setting("FAKE_CUDA_FAULT", -1)) return fault(ILLEGAL_ADDRESS, "a fault was asked for");
    for (void* page : launch.pages) {
        if (page && !memory.count(Address(page))) return fault(ILLEGAL_ADDRESS, "a launch binds memory that is not there");
    }
    if (launch.table && !within(memory, Address(launch.table), 1)) return fault(ILLEGAL_ADDRESS, "a table is not there");
    char message[256] = "";
    const cuda_cpu::Call call = {
        {launch.grid[0], launch.grid[1], launch.grid[2]}, launch.threads, launch.params.data(), launch.function->params_bytes,
        launch.pages, 8, launch.table, cuda_cpu::FORWARD, 1, message, sizeof message,
    };
    if (!launch.function->run(&call)) fault(ILLEGAL_ADDRESS, message);
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What nearly every function begins with.
int ready() {
    if (sticky) return sticky;
    return current == &context && contexts > 0 ? SUCCESS : INVALID_CONTEXT;
}

int streamed(Stream* stream) {
    if (int code = ready()) return code;
    if (!streams.count(stream)) return INVALID_VALUE;
    return stream == capturing ? CAPTURE_UNSUPPORTED : SUCCESS;
}

}  // namespace

#define READY \
    if (int code = ready()) return code
#define STREAMED(stream) \
    if (int code = streamed(stream)) return code

extern "C" {

long fake_cuda(const char* what) {
    // "waiting", or "waiting n" for a stream alone.
    if (!strncmp(what, "waiting", 7)) {
        long waiting = 0;
        for (const Stream* stream : streams) {
            if (!what[7] || stream->number == atol(what + 7)) waiting += long(stream->queue.size());
        }
        return waiting;
    }
    return counts[what];
}

// ---------------------------------------------------------------------------------------------- driver and devices

// NVRTC asks for it.
int cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return NOT_FOUND;
}

int cuInit(unsigned) { return setting("FAKE_CUDA_DEVICES", 1) ? SUCCESS : NO_DEVICE; }

int cuDriverGetVersion(int* version) {
    if (setting("FAKE_CUDA_STUB", 0)) return STUB_LIBRARY;
    *version = int(setting("FAKE_CUDA_VERSION", 13000));
    return SUCCESS;
}

int cuDeviceGetCount(int* count) {
    *count = int(setting("FAKE_CUDA_DEVICES", 1));
    return SUCCESS;
}

int cuDeviceGet(int* device, int index) {
    if (index < 0 || index >= setting("FAKE_CUDA_DEVICES", 1)) return INVALID_DEVICE;
    *device = index;
    return SUCCESS;
}

int cuDeviceGetName(char* name, int room, int) {
    snprintf(name, size_t(room), "Fake GPU");
    return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = int(setting("FAKE_CUDA_CAPABILITY", 90));
    if (attribute != 75 && attribute != 76) return INVALID_VALUE;
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = size_t(setting("FAKE_CUDA_MEMORY", 1l << 32));
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** c, int) {
    if (sticky) return sticky;
    contexts++;
    *c = &context;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    drain();
    contexts--;
    return SUCCESS;
}

int cuCtxSetCurrent(void* c) {
    current = c;
    return sticky;
}

int cuGetErrorName(int code, const char** text) {
    switch (code) {
        case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; return SUCCESS;
        case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
        case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; return SUCCESS;
        default: *text = nullptr; return INVALID_VALUE;
    }
}

int cuGetErrorString(int code, const char** text) {
    switch (code) {
        case OUT_OF_MEMORY: *text = "out of memory"; return SUCCESS;
        case NO_DEVICE: *text = "no CUDA-capable device is detected"; return SUCCESS;
        case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; return SUCCESS;
        default: *text = nullptr; return INVALID_VALUE;
    }
}

// ---------------------------------------------------------------------------------------------- streams and events

int cuStreamCreate(Stream** stream, unsigned) {
    READY;
    *stream = new Stream{long(streams.size()), {}, false};
    streams.insert(*stream);
    counts["streams"]++;
    return SUCCESS;
}

int cuStreamDestroy_v2(Stream* stream) {
    if (!streams.count(stream)) return INVALID_VALUE;
    finish(*stream);
    streams.erase(stream);
    delete stream;
    counts["streams"]--;
    return ready();
}

int cuStreamSynchronize(Stream* stream) {
    STREAMED(stream);
    finish(*stream);
    return sticky;
}

// Waits for what is recorded by now, whatever is recorded later.
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    STREAMED(stream);
    if (event->mark) put(stream, nullptr, event->mark);
    counts["waits of streams"]++;
    return sticky;
}

int cuEventCreate(Event** event, unsigned flags) {
    READY;
    *event = new Event{!(flags & 2), nullptr};
    counts["events"]++;
    return SUCCESS;
}

int cuEventDestroy_v2(Event* event) {
    delete event;
    counts["events"]--;
    return sticky;
}

int cuEventRecord(Event* event, Stream* stream) {
    STREAMED(stream);
    const auto mark = event->mark = std::make_shared<Mark>(Mark{stream, false, 0.0});
    put(stream, [mark] { mark->reached = true, mark->seconds = now(); });
    return sticky;
}

// Time passes while the host asks.
int cuEventQuery(Event* event) {
    READY;
    if (!event->mark) return SUCCESS;
    advance(*event->mark->stream);
    if (sticky) return sticky;
    return event->mark->reached ? SUCCESS : NOT_READY;
}

int cuEventSynchronize(Event* event) {
    READY;
    while (event->mark && !event->mark->reached && !sticky) advance(*event->mark->stream);
    return sticky;
}

int cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    READY;
    if (!start->timed || !end->timed || !start->mark || !end->mark) return INVALID_VALUE;
    if (!start->mark->reached || !end->mark->reached) return NOT_READY;
    *milliseconds = float((end->mark->seconds - start->mark->seconds) * 1e3);
    return SUCCESS;
}

// ---------------------------------------------------------------------------------------------- memory

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    READY;
    *total = size_t(setting("FAKE_CUDA_MEMORY", 1l << 32));
    *free = *total - used;
    return SUCCESS;
}

int cuMemAlloc_v2(Address* address, size_t bytes) {
    READY;
    if (capturing) return CAPTURE_UNSUPPORTED;
    if (used + bytes > size_t(setting("FAKE_CUDA_MEMORY", 1l << 32))) return OUT_OF_MEMORY;
    void* fresh = nullptr;
    if (bytes == 0 || posix_memalign(&fresh, 256, bytes)) return INVALID_VALUE;
    memset(fresh, 0xff, bytes);
    memory[Address(fresh)] = bytes;
    used += bytes;
    counts["memory"]++;
    *address = Address(fresh);
    return SUCCESS;
}

int cuMemFree_v2(Address address) {
    drain();
    const auto found = memory.find(address);
    if (found == memory.end()) return INVALID_VALUE;
    memset(reinterpret_cast<void*>(address), 0xff, found->second);
    free(reinterpret_cast<void*>(address));
    used -= found->second;
    memory.erase(found);
    counts["memory"]--;
    return sticky;
}

int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    READY;
    *address = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(*address, 0xff, bytes);
    pinned[static_cast<char*>(*address)] = bytes;
    counts["pinned"]++;
    return SUCCESS;
}

// Waits for nothing: whoever frees what a copy still needs is found out.
int cuMemFreeHost(void* address) {
    if (!pinned.erase(static_cast<char*>(address))) return INVALID_VALUE;
    free(address);
    counts["pinned"]--;
    return sticky;
}

int cuMemsetD8Async(Address address, unsigned char value, size_t bytes, Stream* stream) {
    STREAMED(stream);
    put(stream, [=] {
        if (!within(memory, address, bytes)) return fault(ILLEGAL_ADDRESS, "a fill beyond its buffer");
        memset(reinterpret_cast<void*>(address), value, bytes);
    });
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Stream* stream) {
    STREAMED(stream);
    const bool direct = within(pinned, static_cast<char*>(const_cast<void*>(from)), bytes);
    const char* first = static_cast<const char*>(from);
    // Pageable memory is read at once, pinned memory when the copy runs.
    const std::vector<char> staged(first, direct ? first : first + bytes);
    put(stream, [=] {
        if (!within(memory, to, bytes)) return fault(ILLEGAL_ADDRESS, "a copy beyond its buffer");
        if (direct && !within(pinned, const_cast<char*>(first), bytes)) return fault(ILLEGAL_ADDRESS, "a copy of freed memory");
        memcpy(reinterpret_cast<void*>(to), direct ? first : staged.data(), bytes);
    });
    counts["copies to the device"]++;
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Stream* stream) {
    STREAMED(stream);
    const bool direct = within(pinned, static_cast<char*>(to), bytes);
    put(stream, [=] {
        if (!within(memory, from, bytes)) return fault(ILLEGAL_ADDRESS, "a copy beyond its buffer");
        if (direct && !within(pinned, static_cast<char*>(to), bytes)) return fault(ILLEGAL_ADDRESS, "a copy to freed memory");
        memcpy(to, reinterpret_cast<void*>(from), bytes);
    });
    if (!direct) finish(*stream);
    counts["copies to the host"]++;
    return sticky;
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream* stream) {
    STREAMED(stream);
    put(stream, [=] {
        if (!within(memory, from, bytes) || !within(memory, to, bytes)) return fault(ILLEGAL_ADDRESS, "a copy beyond its buffer");
        memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    });
    counts["copies on the device"]++;
    return sticky;
}

// ---------------------------------------------------------------------------------------------- kernels and graphs

int cuModuleLoadData(Module** module, const void* image) {
    READY;
    FakeImage head;
    memcpy(&head, image, sizeof head);
    if (memcmp(head.magic, FAKE_MAGIC, sizeof head.magic)) return INVALID_IMAGE;
    char path[] = "/tmp/supernet_fake_driver_XXXXXX";
    const int file = mkstemp(path);
    const bool written = write(file, static_cast<const char*>(image) + sizeof head, head.bytes) == ssize_t(head.bytes);
    close(file);
    void* library = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    unlink(path);
    if (!library) return INVALID_IMAGE;
    *module = new Module{library, {}};
    counts["modules"]++;
    return SUCCESS;
}

int cuModuleUnload(Module* module) {
    for (const Stream* stream : streams) {
        if (!stream->queue.empty()) fault(ILLEGAL_ADDRESS, "a module is unloaded while work is under way");
    }
    dlclose(module->library);
    delete module;
    counts["modules"]--;
    return sticky;
}

int cuModuleGetFunction(const Function** function, Module* module, const char* name) {
    READY;
    auto& known = module->functions[name];
    if (!known) {
        void* run = dlsym(module->library, (std::string("cuda_cpu_") + name).c_str());
        void* bytes = dlsym(module->library, (std::string("cuda_cpu_params_") + name).c_str());
        if (!run || !bytes) return NOT_FOUND;
        known.reset(new Function{reinterpret_cast<bool (*)(const cuda_cpu::Call*)>(run),
                                 reinterpret_cast<size_t (*)()>(bytes)()});
    }
    *function = known.get();
    return SUCCESS;
}

int cuLaunchKernelEx(const LaunchConfig* config, const Function* function, void** arguments, void**) {
    READY;
    const auto [x, y, z] = config->grid;
    Stream* const stream = config->stream;
    if (!streams.count(stream) || !x || !y || !z || config->block[0] > 1024 || config->block[1] != 1 || config->block[2] != 1) {
        return INVALID_VALUE;
    }
    const bool records = stream == capturing;
    for (unsigned i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& attribute = config->attributes[i];
        const bool can = setting("FAKE_CUDA_CAPABILITY", 90) >= 90 && setting("FAKE_CUDA_VERSION", 13000) >= 12040;
        const bool follows = records ? !captured.empty() : stream->launched;
        if (attribute.id != PROGRAMMATIC_STREAM_SERIALIZATION || attribute.value != 1 || !can || !follows) return INVALID_VALUE;
        counts["overlapping launches"]++;
    }
    Launch launch = {function, {x, y, z}, config->block[0], {}, {}, nullptr};
    launch.params.resize((function->params_bytes + 7) / 8);
    memcpy(launch.params.data(), arguments[0], function->params_bytes);
    memcpy(launch.pages, arguments[1], sizeof launch.pages);
    memcpy(&launch.table, arguments[2], sizeof launch.table);
    counts[records ? "captured launches" : "launches"]++;
    if (records) captured.push_back(launch);
    else put(stream, [launch] { run(launch); });
    stream->launched = true;
    return SUCCESS;
}

int cuStreamBeginCapture_v2(Stream* stream, int) {
    STREAMED(stream);
    capturing = stream;
    captured.clear();
    return SUCCESS;
}

int cuStreamEndCapture(Stream* stream, Graph** graph) {
    READY;
    if (!capturing || stream != capturing) return INVALID_VALUE;
    capturing = nullptr;
    *graph = new Graph(captured);
    counts["graphs"]++;
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(std::shared_ptr<Graph>** executable, Graph* graph, unsigned long long) {
    READY;
    *executable = new std::shared_ptr<Graph>(new Graph(*graph));
    counts["executables"]++;
    return SUCCESS;
}

#ifndef FAKE_CUDA_OLD
int cuGraphUpload(std::shared_ptr<Graph>*, Stream* stream) { return streamed(stream); }
#endif

int cuGraphLaunch(std::shared_ptr<Graph>* executable, Stream* stream) {
    STREAMED(stream);
    const std::shared_ptr<Graph> graph = *executable;
    put(stream, [graph] {
        for (const Launch& launch : *graph) {
            if (!sticky) run(launch);
        }
    });
    counts["graph launches"]++;
    return SUCCESS;
}

int cuGraphExecDestroy(std::shared_ptr<Graph>* executable) {
    delete executable;
    counts["executables"]--;
    return sticky;
}

int cuGraphDestroy(Graph* graph) {
    delete graph;
    counts["graphs"]--;
    return sticky;
}
}
