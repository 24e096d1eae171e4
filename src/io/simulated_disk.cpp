// The disk as tests and reactors share it: the lock around what simulated_operations.cpp does.
#include "io/simulated_disk.hpp"

#include "io/simulated_operations.hpp"

namespace safering {

SimulatedDisk::SimulatedDisk() : state_(std::make_unique<State>()) {}
SimulatedDisk::SimulatedDisk(std::unique_ptr<State> state) : state_(std::move(state)) {}
SimulatedDisk::~SimulatedDisk() = default;

std::shared_ptr<SimulatedDisk> SimulatedDisk::crash(CrashPolicy policy) const {
    return crash_after(log_size(), policy);
}

std::shared_ptr<SimulatedDisk> SimulatedDisk::crash_after(std::size_t records,
                                                          CrashPolicy policy) const {
    const std::lock_guard lock(mutex_);
    SAFERING_ASSERT(records <= state_->log.size());
    auto left = std::make_unique<State>();
    left->base = after_crash(state_->base, std::span(state_->log).first(records), policy);
    left->now = left->base;
    left->direct = state_->direct;
    return std::shared_ptr<SimulatedDisk>(new SimulatedDisk(std::move(left)));
}

std::shared_ptr<SimulatedDisk> SimulatedDisk::holding(SimulatedTree tree) {
    auto state = std::make_unique<State>();
    state->base = tree;
    state->now = std::move(tree);
    return std::shared_ptr<SimulatedDisk>(new SimulatedDisk(std::move(state)));
}
void SimulatedDisk::restart(SimulatedTree tree) {
    const std::lock_guard lock(mutex_);
    auto fresh = std::make_unique<State>();
    fresh->base = tree;
    fresh->now = std::move(tree);
    fresh->direct = state_->direct;
    fresh->wakes = std::move(state_->wakes);
    fresh->next_wake = state_->next_wake;
    fresh->next_file = state_->next_file; // a descriptor of before stays a wrong one
    state_ = std::move(fresh);
}
SimulatedTree SimulatedDisk::base() const {
    const std::lock_guard lock(mutex_);
    return state_->base;
}
SimulatedTree SimulatedDisk::now() const {
    const std::lock_guard lock(mutex_);
    return state_->now;
}
std::vector<SimulatedDisk::Record> SimulatedDisk::log() const {
    const std::lock_guard lock(mutex_);
    return state_->log;
}
std::size_t SimulatedDisk::log_size() const {
    const std::lock_guard lock(mutex_);
    return state_->log.size();
}
std::uint64_t SimulatedDisk::operations() const {
    const std::lock_guard lock(mutex_);
    return state_->operations;
}

void SimulatedDisk::intercept(Interceptor interceptor) {
    const std::lock_guard lock(mutex_);
    state_->interceptor = std::move(interceptor);
}
void SimulatedDisk::intercept_end(std::function<void(Operation&)> interceptor) {
    const std::lock_guard lock(mutex_);
    state_->end_interceptor = std::move(interceptor);
}
void SimulatedDisk::inject(Fault fault) {
    const std::lock_guard lock(mutex_);
    state_->faults.push_back({std::move(fault)});
}
void SimulatedDisk::clear_faults() {
    const std::lock_guard lock(mutex_);
    state_->faults.clear();
    state_->hits.clear();
}
std::vector<SimulatedDisk::Hit> SimulatedDisk::hits() const {
    const std::lock_guard lock(mutex_);
    return state_->hits;
}
void SimulatedDisk::shorten_transfers(std::uint64_t seed) {
    const std::lock_guard lock(mutex_);
    state_->shorten.emplace(seed);
}
void SimulatedDisk::shuffle_completions(std::uint64_t seed) {
    const std::lock_guard lock(mutex_);
    state_->shuffle.emplace(seed);
}
void SimulatedDisk::refuse_direct() {
    const std::lock_guard lock(mutex_);
    state_->direct = false;
}
void SimulatedDisk::hold() {
    const std::lock_guard lock(mutex_);
    state_->held = true;
}
void SimulatedDisk::release() {
    const std::lock_guard lock(mutex_);
    state_->held = false;
    for (const auto& [id, wake] : state_->wakes)
        wake();
}

bool SimulatedDisk::exists(std::string_view path) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    return state_->now.find(path, true, place) == 0 && place.inode != 0;
}

std::vector<std::byte> SimulatedDisk::read_file(std::string_view path) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    SAFERING_ASSERT(state_->now.find(path, true, place) == 0 && place.inode != 0);
    return state_->now.inode(place.inode)->data;
}

std::string SimulatedDisk::read_text(std::string_view path) const {
    const std::vector<std::byte> bytes = read_file(path);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void SimulatedDisk::write_file(std::string_view path, std::span<const std::byte> bytes) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path,
        {.kind = FileKind::regular, .data = {bytes.begin(), bytes.end()}});
}
void SimulatedDisk::write_text(std::string_view path, std::string_view text) {
    write_file(path, std::as_bytes(std::span(text)));
}
void SimulatedDisk::make_directory(std::string_view path) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path, {.kind = FileKind::directory});
}
void SimulatedDisk::make_symlink(std::string_view path, std::string_view target) {
    const std::lock_guard lock(mutex_);
    put(state_->base, state_->now, path,
        {.kind = FileKind::symlink, .target = std::string(target)});
}

std::vector<std::string> SimulatedDisk::list(std::string_view path, bool recursive) const {
    const std::lock_guard lock(mutex_);
    SimulatedTree::Place place;
    SAFERING_ASSERT(state_->now.find(path, true, place) == 0 && place.inode != 0);
    return state_->now.names(place.inode, recursive);
}

std::size_t SimulatedDisk::open_files() const {
    const std::lock_guard lock(mutex_);
    return state_->files.size();
}

void SimulatedDisk::perform(Operation& operation) {
    const std::lock_guard lock(mutex_);
    ++state_->operations;
    operation.completion = {};
    auto ended = state_->interceptor ? state_->interceptor(operation) : std::nullopt;
    if (ended)
        operation.completion = std::move(*ended);
    else
        state_->carry_out(operation);
    if (state_->end_interceptor)
        state_->end_interceptor(operation);
}

void SimulatedDisk::close(int file) {
    const std::lock_guard lock(mutex_);
    state_->files.erase(file);
}

bool SimulatedDisk::is_direct(int file) const {
    const std::lock_guard lock(mutex_);
    const auto found = state_->files.find(file);
    return found != state_->files.end() && found->second.direct;
}
bool SimulatedDisk::held() const {
    const std::lock_guard lock(mutex_);
    return state_->held;
}
bool SimulatedDisk::grants_direct() const {
    const std::lock_guard lock(mutex_);
    return state_->direct;
}
std::size_t SimulatedDisk::choose(std::size_t count) {
    const std::lock_guard lock(mutex_);
    return state_->shuffle ? (*state_->shuffle)() % count : 0;
}
std::uint64_t SimulatedDisk::add_wake(Backend::Wake wake) {
    const std::lock_guard lock(mutex_);
    state_->wakes.emplace(++state_->next_wake, std::move(wake));
    return state_->next_wake;
}
void SimulatedDisk::remove_wake(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    state_->wakes.erase(id);
}

} // namespace safering
