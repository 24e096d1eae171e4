#include <safering/tuning.hpp>

#include <algorithm>
#include <tuple>

#include <safering/byte_range.hpp>

namespace safering {

namespace {

std::uint64_t bytes_in_flight(const TuningRow& row) {
    return row.in_flight * row.block_bytes;
}

// The pipeline of a save or load keeps a third of its buffers loaded, or not yet copied out.
unsigned buffers_for(const TuningRow& row) {
    const auto cells =
        static_cast<unsigned>(round_up(bytes_in_flight(row), ReactorOptions{}.buffer_bytes) /
                              ReactorOptions{}.buffer_bytes);
    return cells + cells / 2;
}

bool is_default(const TuningRow& row) {
    const ReactorOptions usual;
    return row.block_bytes == usual.buffer_bytes && buffers_for(row) == usual.buffer_count &&
           row.threads == usual.threads;
}

double part_of(double rate, double best) {
    return best > 0 ? rate / best : 1;
}

} // namespace

ReactorOptions options_of(const TuningRow& row) {
    ReactorOptions options;
    options.threads = row.threads;
    options.buffer_count = buffers_for(row);
    options.transfer_bytes = row.block_bytes;
    options.queue_depth = std::max(options.queue_depth, row.in_flight);
    return options;
}

std::size_t choose_row(std::span<const TuningRow> rows) {
    SAFERING_ASSERT(!rows.empty());
    double best_write = 0, best_read = 0, best = 0;
    for (const TuningRow& row : rows) {
        best_write = std::max(best_write, row.write_rate);
        best_read = std::max(best_read, row.read_rate);
    }
    const auto worth = [&](const TuningRow& row) {
        return std::min(part_of(row.write_rate, best_write), part_of(row.read_rate, best_read));
    };
    for (const TuningRow& row : rows)
        best = std::max(best, worth(row));
    // Runs differ by as much as rows that are alike: what is not clearly better is not worth the change.
    constexpr double worth_changing = 0.9, alike = 0.97;
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (is_default(rows[i]) && worth(rows[i]) >= worth_changing * best)
            return i;
    const auto order = [](const TuningRow& row) {
        return std::tuple(bytes_in_flight(row), row.threads, row.in_flight);
    };
    std::size_t chosen = rows.size();
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (worth(rows[i]) >= alike * best &&
            (chosen == rows.size() || order(rows[i]) < order(rows[chosen])))
            chosen = i;
    return chosen;
}

} // namespace safering
