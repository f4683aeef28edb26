// The sizes of a tensor, without memory of their own.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string>

namespace fastdiff {

inline constexpr std::size_t max_rank = 8;

class Shape {
  public:
    Shape() = default;
    Shape(std::initializer_list<std::size_t> sizes) {
        for (std::size_t size : sizes) push_back(size);
    }

    [[nodiscard]] std::size_t rank() const { return rank_; }
    [[nodiscard]] std::size_t back() const { return sizes_[rank_ - 1]; }
    std::size_t operator[](std::size_t axis) const { return sizes_[axis]; }
    std::size_t& operator[](std::size_t axis) { return sizes_[axis]; }
    // The rank must be below max_rank.
    void push_back(std::size_t size) { sizes_[rank_++] = size; }
    [[nodiscard]] const std::size_t* begin() const { return sizes_.data(); }
    [[nodiscard]] const std::size_t* end() const { return sizes_.data() + rank_; }

    [[nodiscard]] std::size_t elements() const {
        std::size_t product = 1;
        for (std::size_t size : *this) product *= size;
        return product;
    }

    bool operator==(const Shape& other) const {
        if (rank_ != other.rank_) return false;
        for (std::size_t axis = 0; axis < rank_; ++axis) {
            if (sizes_[axis] != other.sizes_[axis]) return false;
        }
        return true;
    }

  private:
    std::size_t rank_ = 0;
    std::array<std::size_t, max_rank> sizes_{};
};

// "[2, 16, 16, 320]"
std::string to_string(const Shape& shape);

}  // namespace fastdiff
