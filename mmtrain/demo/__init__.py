"""mmtrain.demo"""
