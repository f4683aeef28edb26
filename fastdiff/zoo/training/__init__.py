"""How the shipped ``scenes`` checkpoint was made: drawing, captions, training stages, detector,
evaluation.
"""
